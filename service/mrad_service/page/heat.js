/** A map as people see it: colours, outlines, regions. A field is {width, height, values}. */

/** Dark blue over red to light yellow; the same stops as the server's overlays. */
const STOPS = [
  [0, 0, 64], [90, 0, 140], [200, 30, 90], [250, 110, 30], [255, 200, 40], [255, 255, 190],
];
const STEPS = 1024;
const COLOURS = Array.from({ length: STEPS }, (_, step) => {
  const place = (step / (STEPS - 1)) * (STOPS.length - 1);
  const left = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[left].map((low, i) => low + (STOPS[left + 1][i] - low) * (place - left));
});

/** Longest side at which images and maps are drawn, pixels. */
const LONGEST = 1400;

/** The size at which something of this size is drawn. */
export function drawnSize(width, height) {
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

/** A decoded map (0..65535) as a field of probabilities in [0, 1], at the size it is drawn. */
export function fieldOf(map) {
  const [width, height] = drawnSize(map.width, map.height);
  const values = new Float32Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * map.height) / height) * map.width;
    for (let x = 0; x < width; x++) {
      values[y * width + x] = map.values[row + Math.floor(((x + 0.5) * map.width) / width)] / 65535;
    }
  }
  return { width, height, values, full: [map.width, map.height] };
}

/** @returns {[number, number]} smallest and largest value */
export function rangeOf(field) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of field.values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

/** The heat as a canvas of the field's size. Cold places are transparent. */
export function heatCanvas(field, low, high, opacity) {
  const canvas = document.createElement("canvas");
  canvas.width = field.width;
  canvas.height = field.height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(field.width, field.height);
  const span = Math.max(high - low, 1e-9);
  field.values.forEach((value, i) => {
    const heat = Math.min(1, Math.max(0, (value - low) / span));
    const colour = COLOURS[Math.round(heat * (STEPS - 1))];
    image.data[4 * i] = colour[0];
    image.data[4 * i + 1] = colour[1];
    image.data[4 * i + 2] = colour[2];
    image.data[4 * i + 3] = 255 * opacity * Math.sqrt(heat);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

/**
 * Connected parts (8 neighbours) at or above a threshold, strongest first.
 * @returns {{box: number[], area: number, peak: number}[]} box as [x0, y0, x1, y1), drawn pixels
 */
export function regionsOf(field, threshold) {
  const { width, height, values } = field;
  const seen = new Uint8Array(values.length);
  const found = [];
  for (let start = 0; start < values.length; start++) {
    if (seen[start] || values[start] < threshold) continue;
    const region = { box: [width, height, 0, 0], area: 0, peak: 0 };
    const stack = [start];
    seen[start] = 1;
    while (stack.length) {
      const at = stack.pop();
      const x = at % width;
      const y = (at - x) / width;
      grow(region, x, y, values[at]);
      for (let ny = Math.max(0, y - 1); ny <= Math.min(height - 1, y + 1); ny++) {
        for (let nx = Math.max(0, x - 1); nx <= Math.min(width - 1, x + 1); nx++) {
          const next = ny * width + nx;
          if (!seen[next] && values[next] >= threshold) {
            seen[next] = 1;
            stack.push(next);
          }
        }
      }
    }
    found.push(region);
  }
  return found.sort((a, b) => b.peak - a.peak);
}

function grow(region, x, y, value) {
  const box = region.box;
  region.area += 1;
  region.peak = Math.max(region.peak, value);
  box[0] = Math.min(box[0], x);
  box[1] = Math.min(box[1], y);
  box[2] = Math.max(box[2], x + 1);
  box[3] = Math.max(box[3], y + 1);
}

/**
 * Outline at a threshold by marching squares: line segments [x0, y0, x1, y1, ...], drawn pixels.
 * Outside the map counts as below, so that outlines are closed.
 */
export function outlineOf(field, threshold) {
  const { width, height, values } = field;
  const segments = [];
  const outside = threshold - 1e-3;
  const at = (x, y) =>
    x < 0 || y < 0 || x >= width || y >= height ? outside : values[y * width + x];
  for (let y = -1; y < height; y++) {
    let [a, d] = [at(-1, y), at(-1, y + 1)];
    for (let x = -1; x < width; x++) {
      const [b, c] = [at(x + 1, y), at(x + 1, y + 1)];
      const above = (a >= threshold) + (b >= threshold) + (c >= threshold) + (d >= threshold);
      if (above > 0 && above < 4) cross(segments, x + 0.5, y + 0.5, [a, b, c, d], threshold);
      [a, d] = [b, c];
    }
  }
  return segments;
}

/** Where the level crosses the four edges of a cell (a b over d c), joined two by two. */
function cross(segments, x, y, [a, b, c, d], level) {
  const part = (from, to) => (level - from) / (to - from);
  const differs = (p, q) => p >= level !== q >= level;
  const points = [];
  if (differs(a, b)) points.push([x + part(a, b), y]);
  if (differs(b, c)) points.push([x + 1, y + part(b, c)]);
  if (differs(d, c)) points.push([x + part(d, c), y + 1]);
  if (differs(a, d)) points.push([x, y + part(a, d)]);
  for (let i = 0; i + 1 < points.length; i += 2) segments.push(...points[i], ...points[i + 1]);
}
