//# allFunctionsCalledOnLoad
// An image with a layer over it; a pointer or the arrow keys read it at a point, or select a box.

const STEP = 1 / 50;
// The browser shows one frame of a layer while the next is drawn.
const NUM_FRAMES = 2;

/** Give a canvas a size, and return whether it is new; else the canvas keeps what it shows. */
function resize({ canvas }, width, height) {
  if (canvas.width === width && canvas.height === height) return false;
  canvas.width = width;
  canvas.height = height;
  return true;
}

export class Stage extends EventTarget {
  #context;
  // Paints the layer again, at full opacity.
  #draw = null;
  #opacity = 1;
  // Whether the next layer has the size of the image.
  #isPrepared = false;

  /** @param {HTMLElement} root Gets an image, a canvas and a marker. */
  constructor(root, label) {
    super();
    this.root = root;
    this.image = root.appendChild(document.createElement("img"));
    this.layer = root.appendChild(document.createElement("canvas"));
    // Its frames reach the screen without waiting for a frame of the page.
    this.#context = this.layer.transferControlToOffscreen().getContext("2d");
    this.marker = root.appendChild(document.createElement("i"));
    this.marker.hidden = true;
    this.frame = root.appendChild(document.createElement("b"));
    this.frame.hidden = true;
    this.image.alt = "";
    this.layer.tabIndex = 0;
    this.layer.setAttribute("role", "application");
    this.layer.setAttribute("aria-label", label);
    this.point = { x: 0.5, y: 0.5 };
    this.file = null;
    // Whether a drag, or arrow keys with Shift, select a box; its other corner is the point.
    this.selectsBoxes = false;
    this.corner = null;
    this.layer.addEventListener("pointermove", (event) => this.#read(event));
    this.layer.addEventListener("pointerdown", (event) => {
      this.corner = null;
      this.#read(event);
      if (this.selectsBoxes) this.corner = this.point;
      this.layer.setPointerCapture(event.pointerId);
    });
    this.layer.addEventListener("pointerup", (event) => {
      this.#read(event);
      this.#pick();
    });
    this.layer.addEventListener("pointercancel", () => this.#select(null));
    this.layer.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Show an image file; resolves to whether this browser can show it. */
  show(file) {
    this.file = file;
    this.clear();
    if (this.image.src) URL.revokeObjectURL(this.image.src);
    this.root.hidden = false;
    // Not `decode`: the sizes are known before the pixels, which a request need not wait for.
    return new Promise((resolve) => {
      this.image.onload = () => {
        this.#makeRoom();
        resolve(true);
      };
      this.image.onerror = () => resolve(false);
      this.image.src = URL.createObjectURL(file);
    });
  }

  /** The opacity of the layer, painted into its pixels: by CSS a frame is shown 1 ms later. */
  set opacity(value) {
    if (value === this.#opacity) return;
    this.#opacity = value;
    this.#redraw();
  }

  /** Remove the layer. */
  clear() {
    this.#draw = null;
    this.#isPrepared = false;
    this.#context.canvas.width = this.#context.canvas.height = 1;
    this.marker.hidden = true;
    this.#select(null);
  }

  /** Make the layer as large as the image, as soon as its size is known, for `paintRuns`. */
  prepare() {
    this.#isPrepared = true;
    this.#makeRoom();
  }

  #makeRoom() {
    const { complete, naturalWidth, naturalHeight } = this.image;
    if (!this.#isPrepared || !complete || !naturalWidth) return;
    if (resize(this.#context, naturalWidth, naturalHeight)) this.#allocate(NUM_FRAMES);
  }

  /** Draw empty frames: the browser allocates their memory, and reuses it for the mask. */
  #allocate(count) {
    if (!this.#isPrepared || !count) return;
    this.#context.clearRect(0, 0, 1, 1);
    requestAnimationFrame(() => this.#allocate(count - 1));
  }

  /**
   * Paint the layer.
   *
   * @param {number} width Of the layer in its own pixels; it is stretched over the image.
   * @param {Uint8ClampedArray} rgba Its pixels.
   * @param {boolean} isSmooth Whether stretching interpolates.
   */
  paint(width, height, rgba, isSmooth = false) {
    const image = new ImageData(rgba, width, height);
    this.#paint(width, height, isSmooth, () => this.#context.putImageData(image, 0, 0));
  }

  /**
   * Paint runs of pixels, which go down the columns from left to right.
   *
   * @param {[string, number[]][]} runs Colours, each with counts as for `eachRun`.
   */
  paintRuns(width, height, runs) {
    this.#paint(width, height, false, () => {
      for (const [color, counts] of runs) {
        this.#context.fillStyle = color;
        eachRun(counts, (start, end) => this.#fillRun(start, end, height));
      }
    });
  }

  #fillRun(start, end, height) {
    while (start < end) {
      const y = start % height;
      const columns = y ? 0 : Math.floor((end - start) / height);
      const length = Math.min(end - start, height - y);
      this.#context.fillRect((start - y) / height, y, columns || 1, length);
      start += columns * height || length;
    }
  }

  /** Paint an image as the layer. */
  paintImage(image) {
    this.#paint(image.width, image.height, false, () => this.#context.drawImage(image, 0, 0));
  }

  #paint(width, height, isSmooth, draw) {
    this.#isPrepared = false;
    resize(this.#context, width, height);
    this.layer.classList.toggle("smooth", isSmooth);
    this.#draw = draw;
    this.#redraw();
  }

  #redraw() {
    if (!this.#draw) return;
    const { width, height } = this.#context.canvas;
    this.#context.clearRect(0, 0, width, height);
    this.#draw();
    if (this.#opacity >= 1) return;
    this.#context.globalCompositeOperation = "destination-out";
    this.#context.fillStyle = `rgb(0 0 0 / ${1 - this.#opacity})`;
    this.#context.fillRect(0, 0, width, height);
    this.#context.globalCompositeOperation = "source-over";
  }

  /** Mark a point, in shares of width and height. */
  mark({ x, y }) {
    this.marker.hidden = false;
    this.marker.style.left = `${x * 100}%`;
    this.marker.style.top = `${y * 100}%`;
  }

  /** Frame the box between a corner and the point; null forgets it. */
  #select(corner) {
    this.corner = corner;
    this.frame.hidden = !corner;
    if (!corner) return;
    const { x, y } = this.point;
    this.frame.style.left = `${100 * Math.min(x, corner.x)}%`;
    this.frame.style.top = `${100 * Math.min(y, corner.y)}%`;
    this.frame.style.width = `${100 * Math.abs(x - corner.x)}%`;
    this.frame.style.height = `${100 * Math.abs(y - corner.y)}%`;
  }

  #pick() {
    const { corner } = this;
    this.#select(null);
    this.dispatchEvent(new CustomEvent("pick", { detail: { ...this.point, corner } }));
  }

  #read(event) {
    const box = this.layer.getBoundingClientRect();
    const share = (value, size) => Math.min(Math.max(value / size, 0), 1 - 1e-6);
    this.point = {
      x: share(event.clientX - box.left, box.width),
      y: share(event.clientY - box.top, box.height),
    };
    if (this.corner) this.#select(this.corner);
    this.readAgain();
  }

  #onKey(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (move) {
      const corner = this.selectsBoxes && event.shiftKey ? (this.corner ?? this.point) : null;
      const clamp = (value) => Math.min(Math.max(value, 0), 1 - 1e-6);
      this.point = { x: clamp(this.point.x + move[0] * STEP), y: clamp(this.point.y + move[1] * STEP) };
      this.mark(this.point);
      this.#select(corner);
      this.readAgain();
    } else if (event.key === "Enter" || event.key === " ") {
      this.#pick();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Fire `hover` with the point where the image is read. */
  readAgain() {
    this.dispatchEvent(new CustomEvent("hover", { detail: this.point }));
  }
}

/** Call `take` with start and end of each run inside; counts are numbers of pixels outside and inside, in turn. */
export function eachRun(counts, take) {
  let at = 0;
  for (let i = 1; i < counts.length; i += 2) {
    at += counts[i - 1];
    take(at, (at += counts[i]));
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
