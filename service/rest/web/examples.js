// The images that come with the page, with words that fit them and a level of background; the first
// one is open at the start.

export const EXAMPLES = [
  { name: "butterfly", file: "web/butterfly.jpg", words: ["butterfly"], background: 0.75 },
  { name: "squirrel", file: "web/squirrel.jpg", words: ["squirrel"], background: 0.65 },
  { name: "osprey", file: "web/osprey.jpg", words: ["bird"], background: 0.7 },
  { name: "lake", file: "web/lake.jpg", words: ["mountain", "sky", "water"], background: 0 },
  { name: "scene", file: "web/scene.png", words: ["burger", "sunflower", "open book"], background: 0.7 },
  { name: "colosseum", file: "web/colosseum.jpg", words: ["building", "sky"], background: 0 },
  { name: "fruits", file: "web/fruits.jpg", words: ["fruit"], background: 0.6 },
];
