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
  // Whether the layer has the resolution of the screen.
  #isFitted = false;

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
    for (const left of ["pointerleave", "blur"]) {
      this.layer.addEventListener(left, () => this.dispatchEvent(new Event("leave")));
    }
    new ResizeObserver(() => this.#fit()).observe(this.layer);
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
        const { naturalWidth, naturalHeight } = this.image;
        this.root.style.setProperty("--ratio", naturalWidth / naturalHeight);
        this.#fit();
        resolve(true);
      };
      this.image.onerror = () => resolve(false);
      this.image.src = URL.createObjectURL(file);
    });
  }

  /** The opacity of a layer of pixels, painted into them: by CSS a frame is shown 1 ms later. */
  set opacity(value) {
    if (value === this.#opacity) return;
    this.#opacity = value;
    this.#redraw();
  }

  /** Remove the layer. */
  clear() {
    this.#draw = null;
    this.#isFitted = false;
    this.#context.canvas.width = this.#context.canvas.height = 1;
    this.marker.hidden = true;
    this.#select(null);
  }

  /** Make the layer as large as the image on the screen, for `draw`, and keep what it shows. */
  prepare() {
    if (this.#isFitted) return;
    this.#isFitted = true;
    this.#fit();
  }

  #fit() {
    const { clientWidth, clientHeight } = this.layer;
    if (!this.#isFitted || !clientWidth) return;
    const scale = devicePixelRatio;
    if (!resize(this.#context, Math.round(clientWidth * scale), Math.round(clientHeight * scale))) return;
    if (this.#draw) this.#redraw();
    else this.#allocate(NUM_FRAMES);
  }

  /** Draw empty frames: the browser allocates their memory, and reuses it for the mask. */
  #allocate(count) {
    if (!this.#isFitted || this.#draw || !count) return;
    this.#context.clearRect(0, 0, 1, 1);
    requestAnimationFrame(() => this.#allocate(count - 1));
  }

  /**
   * Draw a layer in the resolution of the screen, again whenever the image has another size there.
   *
   * @param {Function} draw Gets a context, and `{width, height, unit}`: its size, and its pixels
   *     in a pixel of the page.
   */
  draw(draw) {
    this.prepare();
    this.layer.classList.remove("smooth");
    this.#draw = draw;
    this.#redraw();
  }

  /**
   * Paint a layer of pixels, which is stretched over the image.
   *
   * @param {number} width Of the layer in its own pixels.
   * @param {Uint8ClampedArray} rgba Its pixels.
   */
  paint(width, height, rgba) {
    const image = new ImageData(rgba, width, height);
    this.#paint(width, height, (context) => context.putImageData(image, 0, 0));
  }

  /** Paint an image as the layer. */
  paintImage(image) {
    this.#paint(image.width, image.height, (context) => context.drawImage(image, 0, 0));
  }

  #paint(width, height, draw) {
    this.#isFitted = false;
    resize(this.#context, width, height);
    this.layer.classList.add("smooth");
    this.#draw = draw;
    this.#redraw();
  }

  #redraw() {
    if (!this.#draw) return;
    const { width, height } = this.#context.canvas;
    this.#context.clearRect(0, 0, width, height);
    this.#draw(this.#context, { width, height, unit: width / this.layer.clientWidth });
    if (this.#isFitted || this.#opacity >= 1) return;
    this.#context.globalCompositeOperation = "destination-out";
    this.#context.fillStyle = `rgb(0 0 0 / ${1 - this.#opacity})`;
    this.#context.fillRect(0, 0, width, height);
    this.#context.globalCompositeOperation = "source-over";
  }

  /** The image with its layer as PNG, in the size of the image. */
  compose() {
    const { naturalWidth: width, naturalHeight: height } = this.image;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(this.image, 0, 0);
    const layer = new OffscreenCanvas(width, height);
    if (this.#isFitted) this.#draw?.(layer.getContext("2d"), { width, height, unit: Math.max(1, width / 1000) });
    else layer.getContext("2d").drawImage(this.#context.canvas, 0, 0, width, height);
    context.drawImage(layer, 0, 0);
    return context.canvas.convertToBlob();
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

/** Paint values as colours from their lowest to their highest, or of the given range. */
export function paintScale(stage, { height, width, values }, [low, high] = rangeOf(values)) {
  const range = high - low || 1;
  stage.paint(width, height, pixels(values.length, (i, out, at) => viridis((values[i] - low) / range, out, at)));
}

/** The lowest and the highest value; arrays are too long for `Math.min`. */
export function rangeOf(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}
