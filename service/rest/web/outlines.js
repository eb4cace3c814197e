//# allFunctionsCalledOnLoad
// Masks as outlines: run lengths become closed paths, which stay sharp at every size of the screen.

// Longer masks are traced at every second pixel, or third, and so on.
const MAX_SIDE = 1000;
// A point of an outline is the mean of so many edges of pixels before and after it.
const REACH = 3;
// Outlines leave the image at its border, where no line is drawn.
const OUTSIDE = 50;
const TINT = 0.4;
const DIM = 0.55;
const LINE_PX = 2;
const [DX, DY] = [[1, 0, -1, 0], [0, 1, 0, -1]];

/** Call `take` with start and end of each run inside; counts are numbers of pixels outside and inside, in turn. */
export function eachRun(counts, take) {
  let at = 0;
  for (let i = 1; i < counts.length; i += 2) {
    at += counts[i - 1];
    take(at, (at += counts[i]));
  }
}

/** The label of every pixel by column, as run lengths are. */
export function labelsOf({ height, width, classes }) {
  const labels = new Uint16Array(height * width);
  for (const { label, segmentation } of classes) {
    eachRun(segmentation.counts, (start, end) => labels.fill(label, start, end));
  }
  return labels;
}

/** Rows of labels with a border of zeros: `{grid, columns, rows}`, both without the border. */
function gridOf(labels, height, width) {
  const step = Math.ceil(Math.max(height, width) / MAX_SIDE);
  const [columns, rows] = [Math.ceil(width / step), Math.ceil(height / step)];
  const grid = new Uint16Array((columns + 2) * (rows + 2));
  for (let x = 0; x < columns; x++) {
    const column = Math.min(x * step + (step >> 1), width - 1) * height;
    for (let y = 0; y < rows; y++) {
      grid[(y + 1) * (columns + 2) + x + 1] = labels[column + Math.min(y * step + (step >> 1), height - 1)];
    }
  }
  return { grid, columns, rows };
}

/**
 * Follow one outline along the edges of pixels, with the region on its right.
 *
 * @returns {number[]} x and y of the middle of each edge. Pixels that touch at a corner are apart.
 */
function follow(grid, stride, start, seen) {
  const right = [0, -1, -stride - 1, -stride];
  const points = [];
  let at = start;
  let direction = 0;
  do {
    if (direction === 0) seen[at] = 1;
    points.push((at % stride) + DX[direction] / 2, Math.floor(at / stride) + DY[direction] / 2);
    at += DX[direction] + DY[direction] * stride;
    if (grid[at + right[direction]] !== grid[start]) direction = (direction + 1) & 3;
    else if (grid[at + right[(direction + 3) & 3]] === grid[start]) direction = (direction + 3) & 3;
  } while (at !== start || direction !== 0);
  return points;
}

/** Add a smooth outline to a path; `points` count from the border of zeros. */
function addTo(path, points, columns, rows) {
  const count = points.length / 2;
  const reach = Math.min(REACH, count >> 3);
  const isInside = (x, y) => x > 1 && x < columns + 1 && y > 1 && y < rows + 1;
  const moveOut = (one, size) => (one <= 1 ? -OUTSIDE : one >= size + 1 ? size + OUTSIDE : one - 1);
  for (let k = 0; k < count; k += 2) {
    let [x, y, weight] = [points[2 * k], points[2 * k + 1], 1];
    if (isInside(x, y)) {
      for (let i = k - reach; i <= k + reach; i++) {
        const at = 2 * ((i + count) % count);
        if (i === k || !isInside(points[at], points[at + 1])) continue;
        x += points[at];
        y += points[at + 1];
        weight += 1;
      }
    }
    path.lineTo(moveOut(x / weight, columns), moveOut(y / weight, rows));
  }
  path.closePath();
}

/** Outlines of all classes: `{paths, columns, rows}`, with a path for each label. */
export function outlinesOf(labels, height, width) {
  const { grid, columns, rows } = gridOf(labels, height, width);
  const stride = columns + 2;
  const seen = new Uint8Array(grid.length);
  const paths = new Map();
  for (let at = stride; at < grid.length - stride; at++) {
    const label = grid[at];
    if (!label || grid[at - stride] === label || seen[at]) continue;
    if (!paths.has(label)) paths.set(label, new Path2D());
    const outline = new Path2D();
    addTo(outline, follow(grid, stride, at, seen), columns, rows);
    paths.get(label).addPath(outline);
  }
  return { paths, columns, rows };
}

/**
 * Draw classes over an image that is `width` x `height` pixels: a tint, a line inside each outline,
 * and darkness elsewhere.
 *
 * @param {number} unit Pixels of the context in a pixel of the page.
 * @param {[number, string][]} shown Labels with their colours.
 * @param {boolean} isAll Whether they cover the image: then nothing is dark.
 */
export function drawOutlines(context, { width, height, unit }, { paths, columns, rows }, shown, isAll) {
  context.save();
  context.scale(width / columns, height / rows);
  const found = shown.filter(([label]) => paths.has(label)).map(([label, color]) => [paths.get(label), color]);
  context.fillStyle = `rgb(0 0 0 / ${isAll ? 0 : DIM})`;
  context.fillRect(0, 0, columns, rows);
  for (const [path, color] of found) {
    context.save();
    context.clip(path, "evenodd");
    context.clearRect(0, 0, columns, rows);
    context.fillStyle = color;
    context.globalAlpha = TINT;
    context.fillRect(0, 0, columns, rows);
    context.globalAlpha = 1;
    context.strokeStyle = color;
    context.lineJoin = "round";
    context.lineWidth = (2 * LINE_PX * unit * columns) / width; // its outer half is clipped
    context.stroke(path);
    context.restore();
  }
  context.restore();
}
