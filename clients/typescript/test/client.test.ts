/** Against a running server: MRAD_URL, MRAD_API_KEY, and a folder of images, MRAD_IMAGES. */

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { MradClient, MradError, npyValues } from "../src/index.js";

const baseUrl = process.env.MRAD_URL!;
const apiKey = process.env.MRAD_API_KEY!;
const client = new MradClient({ baseUrl, apiKey });
const image = (name: string) => readFile(`${process.env.MRAD_IMAGES}/${name}`);
const good = await image("good.png");
const bad = await image("bad.png");
const mask = await image("mask.png");

test("images are judged in order, each with its own status", async () => {
  const scores = await client.score([good, new Uint8Array([1, 2, 3]), bad], { evidence: 1 });
  assert.deepEqual(scores.results.map((r) => r.status), ["ok", "error", "ok"]);
  assert.equal(scores.results[1]!.problem!.code, "invalid_image");
  assert.ok(scores.results[0]!.score! > 0 && scores.results[0]!.score! < 1);
  assert.equal(scores.results[2]!.evidence!.length, 2);
  const { calibrated_score, p_value, warnings } = scores.results[0]!;
  const seen: [number | null | undefined, number | null | undefined, string[] | null | undefined] =
    [calibrated_score, p_value, warnings];
  assert.equal(seen.length, 3);
});

test("a map arrives with its values", async () => {
  const result = await client.scoreImage(new File([bad], "bad.png"), { map: "npy", fields: ["map", "score"] });
  const map = npyValues(result.map);
  assert.equal(map.values.length, map.width * map.height);
  assert.ok(map.values.every((value) => value >= 0 && value <= 1));
  assert.throws(() => npyValues(null), { code: "no_map" });
});

test("a path is read in Node, and one that is not there is an error of its own", async () => {
  const byPath = await client.scoreImage(`${process.env.MRAD_IMAGES}/bad.png`);
  assert.equal(byPath.score, (await client.scoreImage(bad)).score);
  assert.equal(byPath.name, "bad.png");
  await assert.rejects(client.scoreImage("no/such.png"), { code: "unreadable_file" });
});

test("an image that is none is an error with a stable code", async () => {
  await assert.rejects(client.scoreImage(new Uint8Array([0])), { code: "invalid_image", status: 422 });
});

test("what is taught is listed, once for a key, and forgotten", async () => {
  const { entries: before, objects } = await client.bank();
  assert.deepEqual(objects, []);
  await assert.rejects(client.scoreImage(good, { object: "screw" }), { code: "unknown_object", status: 404 });
  const options = { mask, defect: "blob", tags: ["a,b", "ü"], idempotencyKey: "once" };
  const entry = await client.addEntry(bad, "anomalous", options);
  const again = await client.addEntry(bad, "anomalous", options);
  assert.equal(again.entry_id, entry.entry_id);
  assert.deepEqual(entry.tags, ["a,b", "ü"]);
  assert.equal(entry.note, null);
  assert.ok(Array.isArray(entry.warnings));
  const ids = [];
  for await (const one of client.entries()) ids.push(one.entry_id);
  assert.equal(ids.length, before + 1);
  assert.equal(ids[0], entry.entry_id);
  await client.removeEntry(entry.entry_id);
  assert.equal((await client.entryPage({ limit: 1 })).total, before);
  await assert.rejects(client.removeEntry(entry.entry_id), { code: "entry_not_found", status: 404 });
});

test("banks by name", async () => {
  const { active } = await client.banks();
  assert.equal((await client.activateBank(active!)).name, active);
  await assert.rejects(client.activateBank("no/such"), { status: 404 });
});

test("who has no key is told", async () => {
  const stranger = new MradClient({ baseUrl, apiKey: "mrad_no_key" });
  await assert.rejects(stranger.bank(), (error: MradError) => {
    assert.equal(error.code, "unauthenticated");
    assert.ok(error.requestId);
    return true;
  });
  assert.equal(await stranger.ready(), true);
});

test("a busy server is asked again, a broken one is not", async () => {
  const answers = [
    new Response('{"code": "queue_full", "detail": "full"}', { status: 429, headers: { "Retry-After": "0.01" } }),
    new Response('{"code": "internal_error", "detail": "oh"}', { status: 500 }),
  ];
  const fake = new MradClient({ fetch: async () => answers.shift()! });
  await assert.rejects(fake.bank(), { code: "internal_error" });
  assert.equal(answers.length, 0);
});

test("nobody there", async () => {
  const lonely = new MradClient({ baseUrl: "http://127.0.0.1:9", retries: 1 });
  await assert.rejects(lonely.bank(), { code: "unreachable", status: 0 });
  assert.equal(await lonely.ready(), false);
});
