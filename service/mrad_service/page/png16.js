/** 16-bit grey PNG -> numbers. Browsers reduce such files to 8 bits, which is too coarse for maps. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/**
 * @param {Uint8Array} bytes a PNG of 16-bit grey, not interlaced
 * @returns {Promise<{width: number, height: number, values: Uint16Array}>} values row by row
 */
export async function decodePng16(bytes) {
  const { width, height, data } = readChunks(bytes);
  const raw = await inflate(data);
  const stride = width * 2;
  if (raw.length !== height * (stride + 1)) {
    throw new Error(`the map's data has ${raw.length} bytes, not ${height * (stride + 1)}`);
  }
  const values = new Uint16Array(width * height);
  let previous = new Uint8Array(stride);
  for (let y = 0; y < height; y++) {
    const start = y * (stride + 1);
    const line = raw.subarray(start + 1, start + 1 + stride);
    unfilter(raw[start], line, previous);
    for (let x = 0; x < width; x++) {
      values[y * width + x] = (line[2 * x] << 8) | line[2 * x + 1];
    }
    previous = line;
  }
  return { width, height, values };
}

/** @param {string} text base64 @returns {Uint8Array} */
export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

function readChunks(bytes) {
  if (SIGNATURE.some((byte, i) => bytes[i] !== byte)) throw new Error("the map is not a PNG");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts = [];
  let header = null;
  for (let offset = 8; offset + 12 <= bytes.length; ) {
    const length = view.getUint32(offset);
    const kind = String.fromCharCode(...bytes.subarray(offset + 4, offset + 8));
    const start = offset + 8;
    if (kind === "IHDR") header = readHeader(view, start);
    if (kind === "IDAT") parts.push(bytes.subarray(start, start + length));
    if (kind === "IEND") break;
    offset = start + length + 4; // the checksum is the transport's affair
  }
  if (!header || !parts.length) throw new Error("the map's PNG is cut short");
  return { ...header, data: new Blob(parts) };
}

function readHeader(view, start) {
  const [depth, colour, , , interlace] = [8, 9, 10, 11, 12].map((i) => view.getUint8(start + i));
  if (depth !== 16 || colour !== 0 || interlace !== 0) {
    throw new Error(`the map is a PNG of ${depth} bits, colour type ${colour}: not 16-bit grey`);
  }
  return { width: view.getUint32(start), height: view.getUint32(start + 4) };
}

async function inflate(blob) {
  const stream = blob.stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Undo one line's filter in place (PNG specification, section 9); two bytes a pixel. */
function unfilter(kind, line, above) {
  const n = line.length;
  if (kind === 1) for (let i = 2; i < n; i++) line[i] += line[i - 2];
  else if (kind === 2) for (let i = 0; i < n; i++) line[i] += above[i];
  else if (kind === 3) {
    for (let i = 0; i < n; i++) line[i] += ((i < 2 ? 0 : line[i - 2]) + above[i]) >> 1;
  } else if (kind === 4) {
    for (let i = 0; i < n; i++) {
      line[i] += i < 2 ? above[i] : paeth(line[i - 2], above[i], above[i - 2]);
    }
  } else if (kind !== 0) throw new Error(`the map's PNG has an unknown filter, ${kind}`);
}

function paeth(left, up, corner) {
  const guess = left + up - corner;
  const [a, b, c] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}
