/** Which product's images judge, where the memory holds several. */

import { $, show } from "./dom.js";

const HELD = "mrad-object";

/** The choice of this tab; "" asks all of the memory. `changed()` is called when a person chooses another. */
export class Product {
  constructor(changed) {
    $("object").addEventListener("change", (event) => {
      sessionStorage.setItem(HELD, event.target.value);
      changed();
    });
  }

  get name() {
    return sessionStorage.getItem(HELD) ?? "";
  }

  /** The products that the memory holds now; one alone needs no choice. @returns the chosen one if it is gone, else "" */
  fill(names) {
    const gone = names.includes(this.name) ? "" : this.name;
    if (gone) sessionStorage.removeItem(HELD);
    const options = [new Option("All products", ""), ...names.map((name) => new Option(name, name))];
    $("object").replaceChildren(...options);
    $("object").value = this.name;
    show($("object-box"), names.length > 1 || this.name !== "");
    return gone;
  }
}
