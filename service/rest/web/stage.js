// An image with a layer over it; a pointer or the arrow keys read it at a point.

const STEP = 1 / 50;

export class Stage extends EventTarget {
  /** @param {HTMLElement} root Gets an image, a canvas and a marker. */
  constructor(root, label) {
    super();
    this.root = root;
    this.image = root.appendChild(document.createElement("img"));
    this.layer = root.appendChild(document.createElement("canvas"));
    this.marker = root.appendChild(document.createElement("i"));
    this.marker.hidden = true;
    this.image.alt = "";
    this.layer.tabIndex = 0;
    this.layer.setAttribute("role", "application");
    this.layer.setAttribute("aria-label", label);
    this.point = { x: 0.5, y: 0.5 };
    this.file = null;
    this.layer.addEventListener("pointermove", (event) => this.#read(event, "hover"));
    this.layer.addEventListener("pointerdown", (event) => this.#read(event, "pick"));
    this.layer.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Show an image file; resolves to whether this browser can show it. */
  async show(file) {
    this.file = file;
    this.clear();
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.image.src = URL.createObjectURL(file);
    this.root.hidden = false;
    try {
      await this.image.decode();
      return true;
    } catch {
      return false;
    }
  }

  /** Remove the layer. */
  clear() {
    this.layer.width = this.layer.height = 1;
    this.marker.hidden = true;
  }

  /**
   * Paint the layer.
   *
   * @param {number} width Of the layer in its own pixels; it is stretched over the image.
   * @param {Uint8ClampedArray} rgba Its pixels.
   * @param {boolean} isSmooth Whether stretching interpolates.
   */
  paint(width, height, rgba, isSmooth = false) {
    this.layer.width = width;
    this.layer.height = height;
    this.layer.classList.toggle("smooth", isSmooth);
    this.layer.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  }

  /** Mark a point, in shares of width and height. */
  mark({ x, y }) {
    this.marker.hidden = false;
    this.marker.style.left = `${x * 100}%`;
    this.marker.style.top = `${y * 100}%`;
  }

  #read(event, name) {
    const box = this.layer.getBoundingClientRect();
    const share = (value, size) => Math.min(Math.max(value / size, 0), 1 - 1e-6);
    this.point = {
      x: share(event.clientX - box.left, box.width),
      y: share(event.clientY - box.top, box.height),
    };
    this.#tell(name);
  }

  #onKey(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move) {
      const clamp = (value) => Math.min(Math.max(value, 0), 1 - 1e-6);
      this.point = { x: clamp(this.point.x + move[0] * STEP), y: clamp(this.point.y + move[1] * STEP) };
      this.mark(this.point);
      this.#tell("hover");
    } else if (event.key === "Enter" || event.key === " ") {
      this.#tell("pick");
    } else {
      return;
    }
    event.preventDefault();
  }

  #tell(name) {
    this.dispatchEvent(new CustomEvent(name, { detail: this.point }));
  }
}

/** The index of a point in a row-major array of rows and columns. */
export const indexAt = ({ x, y }, height, width) => Math.floor(y * height) * width + Math.floor(x * width);

/** RGBA pixels from a function of the index that writes red, green, blue and alpha. */
export function pixels(count, colour) {
  const rgba = new Uint8ClampedArray(4 * count);
  for (let i = 0; i < count; i++) colour(i, rgba, 4 * i);
  return rgba;
}

// Viridis at five places; linear between them.
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/** Write the colour of a value from 0 to 1. */
export function viridis(value, rgba, at) {
  const place = Math.min(Math.max(value, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  const share = place - low;
  for (let c = 0; c < 3; c++) rgba[at + c] = VIRIDIS[low][c] * (1 - share) + VIRIDIS[low + 1][c] * share;
  rgba[at + 3] = 255;
}
