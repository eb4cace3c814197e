"""The vocabulary: which drawings share a name, which names are everyday, which stay unseen.

A concept is one English name. Its drawings are emoji, listed by their CLDR short names, so that a
dog's face, a whole dog and a poodle are one concept and never compete with one another in a score.
Not in the table are symbols with no visible object (clock faces, arrows), scenes that fill a whole
card (a sunrise, a cityscape), and things told apart only by text on them.
"""

import hashlib
from dataclasses import dataclass
from functools import cache

# name: CLDR short names of its drawings, where they differ from the name itself.
_DRAWINGS: dict[str, tuple[str, ...]] = {
    "monkey": ("monkey face", "monkey"),
    "dog": ("dog face", "dog", "poodle"),
    "cat": ("cat face", "cat"),
    "tiger": ("tiger face", "tiger"),
    "horse": ("horse face", "horse"),
    "cow": ("cow face", "cow"),
    "pig": ("pig face", "pig"),
    "camel": ("camel", "two-hump camel"),
    "mouse": ("mouse face", "mouse"),
    "rabbit": ("rabbit face", "rabbit"),
    "chick": ("hatching chick", "baby chick", "front-facing baby chick"),
    "dragon": ("dragon face", "dragon"),
    "whale": ("spouting whale", "whale"),
    "sheep": ("ewe", "ram"),
    "bull": ("ox", "water buffalo"),
    "fish": ("fish", "tropical fish"),
    "blowfish": ("blowfish",),
    "seashell": ("spiral shell",),
    "caterpillar": ("bug",),
    "bee": ("honeybee",),
    "ladybug": ("lady beetle",),
    "pine tree": ("evergreen tree",),
    "tree": ("deciduous tree",),
    "clover": ("shamrock", "four leaf clover"),
    "rose": ("rose",),
    "daisy": ("blossom",),
    "apple": ("red apple", "green apple"),
    "orange": ("tangerine",),
    "kiwi": ("kiwi fruit",),
    "corn": ("ear of corn",),
    "chili pepper": ("hot pepper",),
    "baguette": ("baguette bread",),
    "cheese": ("cheese wedge",),
    "chicken leg": ("poultry leg",),
    "salad": ("green salad",),
    "burger": ("hamburger",),
    "ramen": ("steaming bowl",),
    "sweet potato": ("roasted sweet potato",),
    "ice cream": ("ice cream", "soft ice cream", "shaved ice"),
    "donut": ("doughnut",),
    "cake": ("birthday cake", "shortcake"),
    "chocolate": ("chocolate bar",),
    "pudding": ("custard",),
    "milk": ("glass of milk",),
    "coffee": ("hot beverage",),
    "green tea": ("teacup without handle",),
    "champagne": ("bottle with popping cork",),
    "cocktail": ("cocktail glass", "tropical drink"),
    "beer": ("beer mug", "clinking beer mugs"),
    "kitchen knife": ("kitchen knife",),
    "globe": (
        "globe showing Europe-Africa",
        "globe showing Americas",
        "globe showing Asia-Australia",
    ),
    "mountain": ("snow-capped mountain", "mountain"),
    "temple": ("classical building",),
    "house": ("house", "house with garden"),
    "castle": ("castle", "Japanese castle"),
    "statue": ("Statue of Liberty",),
    "tower": ("Tokyo tower",),
    "train": ("locomotive", "high-speed train", "bullet train", "train", "metro", "light rail"),
    "tram": ("tram", "tram car"),
    "bus": ("bus", "oncoming bus", "trolleybus", "minibus"),
    "fire truck": ("fire engine",),
    "police car": ("police car", "oncoming police car"),
    "taxi": ("taxi", "oncoming taxi"),
    "car": ("automobile", "oncoming automobile", "sport utility vehicle"),
    "truck": ("delivery truck", "articulated lorry"),
    "race car": ("racing car",),
    "scooter": ("motor scooter", "kick scooter"),
    "gas pump": ("fuel pump",),
    "siren": ("police car light",),
    "traffic light": ("horizontal traffic light", "vertical traffic light"),
    "roadblock": ("construction",),
    "motorboat": ("speedboat", "motor boat"),
    "ship": ("passenger ship", "ferry", "ship"),
    "airplane": ("airplane", "small airplane", "airplane departure", "airplane arrival"),
    "cable car": ("mountain cableway", "aerial tramway"),
    "service bell": ("bellhop bell",),
    "hourglass": ("hourglass done", "hourglass not done"),
    "clock": ("mantelpiece clock", "alarm clock"),
    "stopwatch": ("stopwatch", "timer clock"),
    "moon": ("full moon", "crescent moon", "first quarter moon face", "last quarter moon face"),
    "sun": ("sun", "sun with face"),
    "star": ("star", "glowing star"),
    "rain cloud": ("cloud with rain", "cloud with lightning and rain", "sun behind rain cloud"),
    "umbrella": ("closed umbrella", "umbrella", "umbrella with rain drops", "umbrella on ground"),
    "lightning": ("high voltage",),
    "snowman": ("snowman", "snowman without snow"),
    "water drop": ("droplet",),
    "wave": ("water wave",),
    "pumpkin": ("jack-o-lantern",),
    "gift": ("wrapped gift",),
    "ticket": ("ticket", "admission tickets"),
    "medal": (
        "military medal",
        "sports medal",
        "1st place medal",
        "2nd place medal",
        "3rd place medal",
    ),
    "football": ("american football", "rugby football"),
    "tennis racket": ("tennis",),
    "boxing glove": ("boxing glove",),
    "fishing rod": ("fishing pole",),
    "billiard ball": ("pool 8 ball",),
    "game controller": ("video game",),
    "die": ("game die",),
    "picture frame": ("framed picture",),
    "palette": ("artist palette",),
    "tie": ("necktie",),
    "shirt": ("t-shirt",),
    "blouse": ("woman\u2019s clothes",),
    "handbag": ("handbag", "purse"),
    "shopping bag": ("shopping bags",),
    "shoe": ("man\u2019s shoe", "running shoe"),
    "high heel": ("high-heeled shoe",),
    "sandal": ("woman\u2019s sandal",),
    "boot": ("woman\u2019s boot",),
    "sun hat": ("woman\u2019s hat",),
    "helmet": ("rescue worker\u2019s helmet",),
    "diamond": ("gem stone",),
    "speaker": (
        "speaker low volume",
        "speaker medium volume",
        "speaker high volume",
        "muted speaker",
    ),
    "bell": ("bell", "bell with slash"),
    "microphone": ("microphone", "studio microphone"),
    "headphones": ("headphone",),
    "piano": ("musical keyboard",),
    "phone": ("mobile phone",),
    "telephone": ("telephone", "telephone receiver"),
    "plug": ("electric plug",),
    "computer": ("laptop", "desktop computer"),
    "film camera": ("movie camera", "film projector"),
    "camera": ("camera", "camera with flash"),
    "magnifying glass": ("magnifying glass tilted left", "magnifying glass tilted right"),
    "lantern": ("red paper lantern",),
    "book": ("closed book", "green book", "blue book", "orange book", "open book", "books"),
    "notebook": ("notebook", "notebook with decorative cover", "ledger"),
    "banknote": ("dollar banknote", "euro banknote", "pound banknote", "yen banknote"),
    "envelope": ("envelope", "e-mail", "incoming envelope"),
    "box": ("package",),
    "mailbox": (
        "closed mailbox with raised flag",
        "closed mailbox with lowered flag",
        "open mailbox with raised flag",
        "open mailbox with lowered flag",
    ),
    "pen": ("pen", "fountain pen"),
    "folder": ("file folder", "open file folder"),
    "pin": ("pushpin", "round pushpin"),
    "ruler": ("straight ruler", "triangular ruler"),
    "trash can": ("wastebasket",),
    "lock": ("locked", "unlocked", "locked with key"),
    "key": ("key", "old key"),
    "hammer": ("hammer",),
    "pickaxe": ("pick",),
    "swords": ("crossed swords",),
    "bow": ("bow and arrow",),
    "scales": ("balance scale",),
    "satellite dish": ("satellite antenna",),
    "sofa": ("couch and lamp",),
    "film roll": ("film frames",),
    "disc": ("optical disk", "dvd"),
}

# Names that are already CLDR short names of one drawing each.
_SAME_NAME = """
gorilla, wolf, fox, lion, leopard, unicorn, deer, boar, goat, elephant, rhinoceros, rat,
hamster, chipmunk, bat, bear, koala, panda, turkey, chicken, rooster, bird, penguin, dove,
eagle, duck, owl, frog, crocodile, turtle, lizard, snake, dolphin, shark,
octopus, crab, shrimp, squid, snail, butterfly, ant, cricket, spider, scorpion, bouquet, cherry
blossom, hibiscus, sunflower, tulip, seedling, palm tree, cactus, maple leaf, mushroom, grapes,
melon, watermelon, lemon, banana, pineapple, pear, peach, cherries, strawberry, tomato, avocado,
eggplant, potato, carrot, cucumber, peanuts, chestnut, bread, croissant, pancakes, bacon, french
fries, pizza, hot dog, taco, burrito, egg, popcorn, rice ball, spaghetti, sushi, fried shrimp,
dango, cookie, candy, lollipop, honey pot, baby bottle, sake, wine glass, spoon, amphora,
volcano, desert island, stadium, hospital, church, mosque, fountain, tent, ferris wheel, roller
coaster, barber pole, ambulance, tractor, motorcycle, bicycle, oil drum, stop sign, anchor,
sailboat, canoe, seat, helicopter, satellite, rocket, watch, thermometer, shooting star, cloud,
tornado, rainbow, snowflake, comet, fire, Christmas tree, balloon, party popper, wind chime,
ribbon, trophy, soccer ball, baseball, basketball, volleyball, bowling, badminton, goal net, ice
skate, skis, crystal ball, joystick, slot machine, glasses, sunglasses, jeans, dress, kimono,
bikini, clutch bag, backpack, crown, top hat, graduation cap, lipstick, ring, loudspeaker,
megaphone, postal horn, radio, saxophone, trumpet, guitar, violin, drum, battery, printer,
keyboard, computer mouse, floppy disk, clapper board, television, video camera, videocassette,
candle, light bulb, flashlight, scroll, newspaper, label, money bag, credit card, postbox,
pencil, paintbrush, crayon, briefcase, calendar, clipboard, paperclip, scissors, dagger, bomb,
shield, wrench, nut and bolt, gear, clamp, chains, microscope, telescope, syringe, pill, door,
bed, toilet, bathtub, shopping cart, cigarette, coffin, moai
"""

# Everyday words. Half of all objects in a training scene are one of these, as real captions are
# long-tailed too, and the main score is taken over exactly these 50 names.
_COMMON = """
dog, cat, horse, cow, pig, rabbit, bear, elephant, bird, fish, turtle, butterfly, tree,
sunflower, rose, cactus, mushroom, apple, banana, strawberry, watermelon, carrot, bread, cheese,
pizza, burger, egg, cake, house, castle, car, bus, truck, train, bicycle, airplane, rocket,
umbrella, guitar, book, clock, shoe, key, hammer, scissors, camera, phone, computer, soccer
ball, star
"""

# Names that only the furniture renders show, and what their catalogue calls them (its last word).
FURNITURE_NAMES = {
    "chair": "chair", "armchair": "chair", "table": "table", "lamp": "lamp", "vase": "vase",
    "desk": "desk", "stool": "stool", "bookcase": "bookcase", "shelves": "bookcase",
    "wardrobe": "wardrobe", "bed": "bed", "sofa": "sofa", "couch": "sofa", "tv": "television",
    "television": "television", "toilet": "toilet", "bathtub": "bathtub", "truck": "truck",
    "scooter": "scooter", "horse": "horse", "umbrella": "umbrella", "speaker": "speaker",
    "plant": "plant", "piano": "piano", "guitar": "guitar", "bicycle": "bicycle", "car": "car",
    "sedan": "car", "clock": "clock", "bench": "bench", "door": "door", "window": "window",
    "cup": "cup", "bowl": "bowl", "bottle": "bottle", "fridge": "fridge", "tulips": "tulip",
    "washbasin": "sink", "sink": "sink", "dog": "dog", "cat": "cat", "book": "book",
    "computer": "computer", "imac": "computer", "tree": "tree", "rock": "rock", "towel": "towel",
}  # fmt: skip

_MASS_OR_PLURAL = """
cherries, grapes, peanuts, pancakes, french fries, popcorn, spaghetti, sushi, bread, cheese,
bacon, corn, milk, coffee, green tea, sake, champagne, beer, chocolate, candy, fire, lightning,
glasses, sunglasses, jeans, skis, scissors, swords, headphones, chains, scales, bowling,
badminton, ramen, salad, pudding
"""
_UNSEEN_SHARE = 0.2


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", " ").split(",") if word.strip())


COMMON_NAMES = _words(_COMMON)
NO_ARTICLE = frozenset(_words(_MASS_OR_PLURAL))


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """One English name and the drawings that show it.

    Attributes:
        name: Its name in captions and prompts.
        drawings: CLDR short names of the emoji that show it; none where only furniture renders do.
        is_common: Whether it is one of the 50 everyday words.
        is_unseen: Whether no training scene may show or name it.
    """

    name: str
    drawings: tuple[str, ...]
    is_common: bool
    is_unseen: bool


def _is_unseen(name: str) -> bool:
    """Choose a fifth of the rarer names by hash, so that adding a name moves no other."""
    digest = hashlib.sha256(f"unseen:{name}".encode()).digest()
    return (
        name not in COMMON_NAMES
        and name not in FURNITURE_NAMES.values()
        and digest[0] < 256 * _UNSEEN_SHARE
    )


@cache
def all_concepts() -> tuple[Concept, ...]:
    """List every concept, sorted by name (the order is part of the data's determinism)."""
    furniture: dict[str, tuple[str, ...]] = dict.fromkeys(FURNITURE_NAMES.values(), ())
    table = furniture | {name: (name,) for name in _words(_SAME_NAME)} | _DRAWINGS
    return tuple(
        Concept(
            name=name,
            drawings=table[name],
            is_common=name in COMMON_NAMES,
            is_unseen=_is_unseen(name),
        )
        for name in sorted(table)
    )
