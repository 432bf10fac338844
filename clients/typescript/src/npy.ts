import { MradError } from "./errors.js";

/** Raw probabilities of a map, row by row, at the size of the input image. */
export interface MapValues {
  width: number;
  height: number;
  values: Float32Array;
}

/** A map that was asked for as `npy`, decoded. */
export function npyValues(map: { format: string; data?: unknown } | null | undefined): MapValues {
  if (map?.format !== "npy" || typeof map.data !== "string") {
    throw new MradError(0, "no_map", 'this result holds no npy map: ask for map: "npy"');
  }
  const bytes = Uint8Array.from(atob(map.data), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const long = view.getUint8(6) > 1; // versions 2 and 3 have a length of 4 bytes
  const start = (long ? 12 : 10) + (long ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder().decode(bytes.subarray(10, start));
  const shape = /'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\)/.exec(header);
  if (!shape) throw new MradError(0, "unexpected_response", `not a float32 map: ${header}`);
  const [height, width] = [Number(shape[1]), Number(shape[2])];
  return { width, height, values: new Float32Array(bytes.buffer.slice(start), 0, width * height) };
}
