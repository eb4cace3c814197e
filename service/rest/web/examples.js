// The images that come with the page, with words that fit them; the first one is open at the start.

export const EXAMPLES = [
  { name: "otter", file: "web/otter.jpg", words: ["otter", "water", "rock"] },
  { name: "squirrel", file: "web/squirrel.jpg", words: ["squirrel", "tree", "leaf"] },
  { name: "lake", file: "web/lake.jpg", words: ["mountain", "sky", "lake"] },
  { name: "colosseum", file: "web/colosseum.jpg", words: ["building", "sky"] },
  { name: "fruits", file: "web/fruits.jpg", words: ["orange", "lemon", "kiwi"] },
  { name: "scene", file: "web/scene.png", words: ["burger", "sunflower", "book"] },
];
