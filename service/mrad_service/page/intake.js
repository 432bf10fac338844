/** How images come in: dropped files and folders, the two pickers, the clipboard. */

import { $ } from "./dom.js";

const LOOKS_LIKE =
  /\.(a?png|jpe?g|jpe|jfif|bmp|dib|webp|tiff?|btf|gif|p[abgpnf]m|jp2|j2k|jpx|avif|hei[cf]|tga|pcx|ico|dcm|dicom)$/i;

/** Call `take(files)` for whatever is brought, however it is brought. */
export function listen(take) {
  const drop = $("drop");
  for (const name of ["files", "folder"]) {
    const input = $(name);
    input.addEventListener("change", () => {
      take(images([...input.files]));
      input.value = "";
    });
  }
  $("pick").addEventListener("click", () => $("files").click());
  $("pick-folder").addEventListener("click", () => $("folder").click());
  document.addEventListener("paste", (event) => {
    const files = images([...(event.clipboardData?.files ?? [])]);
    if (files.length) take(files);
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
    take(images(await dropped(event.dataTransfer)));
  });
}

/** What may be an image, by type or name; a lone stranger too, so that its error can be shown. */
function images(files) {
  if (files.length === 1) return files;
  return files.filter((file) => file.type.startsWith("image/") || LOOKS_LIKE.test(file.name));
}

async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  const found = await Promise.all(entries.map(walk));
  return found.flat();
}

/** Every file below an entry, in the order of their names. */
async function walk(entry) {
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
  for (const child of children) files.push(...(await walk(child)));
  return files;
}
