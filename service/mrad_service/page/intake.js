/** How images come in: dropped files and folders, the two pickers, the clipboard. */

import { $ } from "./dom.js";

const LOOKS_LIKE =
  /\.(a?png|jpe?g|jpe|jfif|bmp|dib|webp|tiff?|btf|gif|p[abgpnf]m|jp2|j2k|jpx|avif|hei[cf]|tga|pcx|ico|dcm|dicom)$/i;

/** Call `take(files, left)` for whatever is brought, however it is brought; `left`: names of what no image is, by its name. */
export function listen(take) {
  const drop = $("drop");
  for (const name of ["files", "folder"]) {
    const input = $(name);
    input.addEventListener("change", () => {
      take(...images([...input.files]));
      input.value = "";
    });
  }
  $("pick").addEventListener("click", () => $("files").click());
  $("pick-folder").addEventListener("click", () => $("folder").click());
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) take(...images(files));
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const unread = [];
    const files = await dropped(event.dataTransfer, unread);
    const [taken, left] = images(files);
    take(taken, [...left, ...unread]);
  });
}

/** What may be an image, by type or name, and the names of the others; a lone stranger too, so that its error can be shown. */
function images(files) {
  if (files.length === 1) return [files, []];
  const may = (file) => file.type.startsWith("image/") || LOOKS_LIKE.test(file.name);
  return [files.filter(may), files.filter((file) => !may(file)).map((file) => file.name)];
}

async function dropped(transfer, unread) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const found = await Promise.all(entries.map((entry) => walk(entry, unread)));
  return found.flat();
}

/** Every file below an entry, in the order of their names; what cannot be read is named in `unread`. */
async function walk(entry, unread) {
  try {
    return await below(entry, unread);
  } catch {
    unread.push(entry.name);
    return [];
  }
}

async function below(entry, unread) {
  if (entry.isFile) {
    return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  }
  const reader = entry.createReader();
  const children = [];
  for (;;) {
    // a browser hands out a hundred at a time
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) break;
    children.push(...part);
  }
  children.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const files = [];
  for (const child of children) files.push(...(await walk(child, unread)));
  return files;
}
