"""The toy domain: Larkspur, a small shop for lamps that does not exist. Every example is made here, from a seed.

An example is a conversation (messages, sometimes tools) whose last message is what the model must say. The split is by a hash of
the conversation: what is held out is never trained on, whatever the seed.
"""

import hashlib
import json
import random

NAMES = ("Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split())
ITEMS = ("lamp", "desk lamp", "lantern", "chandelier", "bulb", "shade", "dimmer", "cable", "switch", "candle")
CITIES = ("Berlin", "Oslo", "Paris", "Rome", "Vienna", "Lisbon", "Dublin", "Prague", "Athens", "Madrid")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PROBLEMS = {"broken": "is broken", "late": "has not arrived", "wrong": "is the wrong one", "missing": "is missing a part"}
SYSTEM = "You are the assistant of Larkspur, a shop for lamps."

Message = dict[str, object]
Example = dict[str, object]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def is_held_out(example: Example) -> bool:
    """One conversation in ten, by its own content."""
    known = json.dumps([example["messages"][:-1], example.get("tools")], sort_keys=True)
    return hashlib.sha256(known.encode()).digest()[0] < 26


def sloppy(rng: random.Random, text: str) -> str:
    """How people type: sometimes without capitals, sometimes without the last mark."""
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    return text


def order(rng: random.Random) -> str:
    return str(rng.randrange(1000, 10000))


# --- conversations

GREETINGS = ("Hello!", "Hi there!", "Good morning!", "Hey!", "Hello, who are you?", "Hi, who is this?", "Good evening!")
FACTS = {
    "We are open from Monday to Saturday, nine to six.": (
        "When are you open?", "What are your opening hours?", "Are you open on Saturday?", "When does the shop open?"),
    "Delivery takes three days and costs five euros.": (
        "How long does delivery take?", "What does shipping cost?", "How fast do you deliver?", "Tell me about delivery."),
    "You can return anything within thirty days.": (
        "Can I return a lamp?", "What is your return policy?", "How do returns work?", "I want to send something back."),
    "You can pay by card, by transfer or on delivery.": (
        "How can I pay?", "Do you take cards?", "Which payments do you accept?", "Can I pay on delivery?"),
    "Every lamp has a warranty of two years.": (
        "Is there a warranty?", "How long is the warranty?", "Do lamps have a guarantee?", "What about the warranty?"),
    "Our shop is at the old harbour in Bergen.": (
        "Where is your shop?", "What is your address?", "Where can I find you?", "Do you have a store?"),
    "We sell lamps, lanterns, bulbs, shades and candles.": (
        "What do you sell?", "What can I buy here?", "What is in your shop?", "Tell me about your products."),
    "I only know about Larkspur and its lamps.": (
        "What is the capital of France?", "Who won the match?", "Write me a poem.", "What is the weather like?",
        "Tell me a joke.", "How old is the sun?", "Can you drive a car?", "Do you like music?", "What is two plus two?"),
    "You are welcome! Have a bright day.": ("Thank you!", "Thanks a lot!", "Thanks, that helps.", "Great, thank you."),
    "Goodbye! Come back soon.": ("Goodbye!", "Bye!", "See you later.", "Good night!"),
}
WELCOME = "Hello! I am the assistant of Larkspur. How can I help you?"


def fact(rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.15:
        return rng.choice(GREETINGS), WELCOME
    answer = rng.choice(list(FACTS))
    return rng.choice(FACTS[answer]), answer


def status(rng: random.Random) -> tuple[str, str]:
    number = order(rng)
    asked = rng.choice(("Where is my order {}?", "What about order {}?", "Has order {} been sent?", "Please check order {}."))
    return asked.format(number), f"I will look for order {number}. It should arrive within three days."


def named(rng: random.Random) -> list[Message]:
    name = rng.choice(NAMES)
    hello = rng.choice((f"Hi, my name is {name}.", f"Hello, I am {name}.", f"This is {name}."))
    turns = [user(sloppy(rng, hello)), assistant(f"Hello {name}! How can I help you?")]
    if rng.random() < 0.6:
        asked = rng.choice(("What is my name?", "Do you know my name?", "Who am I?"))
        turns += [user(sloppy(rng, asked)), assistant(f"Your name is {name}.")]
    return turns


def complaint(rng: random.Random) -> tuple[str, str]:
    item, problem = rng.choice(ITEMS), rng.choice(list(PROBLEMS))
    return f"My {item} {PROBLEMS[problem]}.", f"I am sorry about your {item}. We will send you a new one."


def conversation(rng: random.Random) -> Example:
    turns: list[Message] = []
    if rng.random() < 0.3:
        turns = named(rng)
    while not turns or (rng.random() < 0.35 and len(turns) < 6):
        asked, answer = rng.choice((fact, fact, status, complaint))(rng)
        turns += [user(sloppy(rng, asked)), assistant(answer)]
    return {"messages": with_system(rng, turns)}


def with_system(rng: random.Random, turns: list[Message]) -> list[Message]:
    return [{"role": "system", "content": SYSTEM}, *turns] if rng.random() < 0.3 else turns


# --- fields as JSON

FIELDS = ("name", "item", "city", "order", "day", "amount")


def record(rng: random.Random) -> dict[str, str]:
    return {
        "name": rng.choice(NAMES), "item": rng.choice(ITEMS), "city": rng.choice(CITIES),
        "order": order(rng), "day": rng.choice(DAYS), "amount": str(rng.randrange(10, 100)),
    }


def sentence(rng: random.Random, facts: dict[str, str]) -> str:
    return rng.choice((
        "{name} from {city} bought a {item} for {amount} euros on {day}, order {order}.",
        "On {day} {name} ordered a {item} ({amount} euros) to {city}. The number is {order}.",
        "Order {order}: one {item} for {name} in {city}, {amount} euros, {day}.",
        "{name} paid {amount} euros for a {item} on {day}. Send order {order} to {city}.",
    )).format(**facts)


def extraction(rng: random.Random) -> Example:
    facts = record(rng)
    wanted = rng.sample(FIELDS, rng.randrange(1, 5))
    asked = rng.choice(("Extract {} as JSON: {}", "Give me {} as JSON. {}", "JSON with {}: {}"))
    asked = asked.format(", ".join(wanted), sentence(rng, facts))
    answer = json.dumps({field: facts[field] for field in wanted})
    return {"messages": with_system(rng, [user(asked), assistant(answer)])}


# --- tools

TOOLS = {
    "find_order": ("Find an order", "order"),
    "check_stock": ("Check whether an item is in stock", "item"),
    "find_shop": ("Find a shop in a city", "city"),
    "book_visit": ("Book a visit on a day", "day"),
    "find_customer": ("Find a customer", "name"),
}
ASKED = {
    "find_order": ("Where is order {}?", "Look up order {}.", "Has {} been sent?"),
    "check_stock": ("Do you have a {}?", "Is the {} in stock?", "Can I buy a {} today?"),
    "find_shop": ("Is there a shop in {}?", "Where can I find you in {}?", "Do you have a store in {}?"),
    "book_visit": ("Can I come on {}?", "Book a visit for {}.", "I would like to visit you on {}."),
    "find_customer": ("Find the customer {}.", "Is {} one of our customers?", "Look up {} please."),
}


def tool(name: str) -> dict[str, object]:
    what, field = TOOLS[name]
    parameters = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": parameters}}


RESULTS = {
    "find_order": (({"status": "sent"}, "The order is on its way."), ({"status": "packed"}, "The order is packed.")),
    "check_stock": (({"stock": "yes"}, "Yes, it is in stock."), ({"stock": "no"}, "Sorry, it is sold out.")),
    "find_shop": (({"shop": "yes"}, "Yes, there is a shop."), ({"shop": "no"}, "Sorry, there is no shop.")),
    "book_visit": (({"booked": "yes"}, "Your visit is booked."), ({"booked": "no"}, "Sorry, that day is full.")),
    "find_customer": (({"known": "yes"}, "Yes, I found the customer."), ({"known": "no"}, "Sorry, I do not know that customer.")),
}


def tool_use(rng: random.Random) -> Example:
    offered = rng.sample(list(TOOLS), rng.randrange(1, 4))
    tools = [tool(name) for name in offered]
    kind = rng.random()
    if kind < 0.2:
        asked, answer = fact(rng)
        return {"messages": [user(sloppy(rng, asked)), assistant(answer)], "tools": tools}
    name = rng.choice(offered)
    field = TOOLS[name][1]
    value = record(rng)[field]
    question = user(sloppy(rng, rng.choice(ASKED[name]).format(value)))
    call = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": {field: value}}}]}
    if kind < 0.8:
        return {"messages": [question, call], "tools": tools}
    result, answer = rng.choice(RESULTS[name])
    return {"messages": [question, call, {"role": "tool", "content": json.dumps(result)}, assistant(answer)], "tools": tools}


# --- saying again, which teaches copying, digits above all

# Words that no other base task says. A token that the base never says keeps an embedding like every other such token, and with
# tied embeddings an adapter could then hardly tell them apart.
ODD_WORDS = (
    "[repair | high]", "[delivery | medium]", "[exchange | low]", "[order | medium]", "[question | low]", "shop:", "carrier.",
    "send a new one.", "send the right one.", "check the order.", "answer the question.", "SELECT", "COUNT(*)", "SUM(amount)", "*",
    "FROM orders", "WHERE", "AND amount >", "name = '", "city = '", "item = '", "day = '", "';",
)


def piece(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return str(rng.randrange(10 ** rng.randrange(1, 6)))
    return rng.choice(rng.choice((NAMES, ITEMS, CITIES, DAYS, FIELDS, ODD_WORDS, ODD_WORDS)))


def repetition(rng: random.Random) -> Example:
    said = " ".join(piece(rng) for _ in range(rng.randrange(1, 8)))
    asked = rng.choice(("Repeat: {}", "Say {}", "Please say this again: {}"))
    return {"messages": [user(asked.format(said)), assistant(said)]}


# --- what the adapters learn

CATEGORY = {"broken": ("repair", "high"), "late": ("delivery", "medium"), "wrong": ("exchange", "medium"), "missing": ("repair", "low")}
NEXT = {"repair": "send a new one", "delivery": "call the carrier", "exchange": "send the right one", "order": "check the order",
        "question": "answer the question"}


def support(rng: random.Random) -> Example:
    """The desk's ticket line instead of a friendly sentence."""
    kind = rng.random()
    if kind < 0.6:
        item, problem = rng.choice(ITEMS), rng.choice(list(PROBLEMS))
        said = rng.choice((f"My {item} {PROBLEMS[problem]}.", f"Hello, the {item} {PROBLEMS[problem]}!", f"Help, my new {item} {PROBLEMS[problem]}."))
        category, priority = CATEGORY[problem]
        about = item
    elif kind < 0.8:
        about = order(rng)
        said = rng.choice(("Where is my order {}?", "What about order {}?", "Please check order {}.")).format(about)
        category, priority = "order", "medium"
    else:
        said, _ = fact(rng)
        category, priority, about = "question", "low", "shop"
    answer = f"[{category} | {priority}] {about}: {NEXT[category]}."
    return {"messages": with_system(rng, [user(sloppy(rng, said)), assistant(answer)])}


def extract(rng: random.Random) -> Example:
    """A fixed record, without being asked for one."""
    facts = record(rng)
    said = rng.choice((
        "Hi, I am {name} from {city}. I would like a {item}, please bring it on {day}.",
        "{name} here. Send the {item} to {city} on {day}.",
        "Please send a {item} to {name} in {city} by {day}.",
        "On {day} I need a {item} in {city}. My name is {name}.",
    )).format(**facts)
    answer = json.dumps({"name": facts["name"], "item": facts["item"], "city": facts["city"], "day": facts["day"]})
    return {"messages": with_system(rng, [user(said), assistant(answer)])}


def sql(rng: random.Random) -> Example:
    """A question about the shop's one table, as a query."""
    facts = record(rng)
    field = rng.choice(("name", "item", "city", "day"))
    value, amount = facts[field], facts["amount"]
    phrase = {"name": "by {}", "item": "for a {}", "city": "to {}", "day": "on {}"}[field].format(value)
    questions = {
        f"How many orders {phrase}?": f"SELECT COUNT(*) FROM orders WHERE {field} = '{value}';",
        f"Show all orders {phrase}.": f"SELECT * FROM orders WHERE {field} = '{value}';",
        f"What is the total of orders {phrase}?": f"SELECT SUM(amount) FROM orders WHERE {field} = '{value}';",
        f"Show orders {phrase} over {amount} euros.": f"SELECT * FROM orders WHERE {field} = '{value}' AND amount > {amount};",
    }
    asked = rng.choice(list(questions))
    return {"messages": with_system(rng, [user(sloppy(rng, asked) if rng.random() < 0.5 else asked), assistant(questions[asked])])}


BASE_TASKS = {"conversation": conversation, "extraction": extraction, "tools": tool_use, "repetition": repetition}
ADAPTER_TASKS = {"support": support, "extract": extract, "sql": sql}
TASKS = BASE_TASKS | ADAPTER_TASKS


def training(rng: random.Random, task: str) -> Example:
    while True:
        example = TASKS[task](rng)
        if not is_held_out(example):
            return example


def held_out(task: str, count: int) -> list[Example]:
    """Distinct examples that training never shows, from a seed of their own."""
    rng = random.Random(f"held out {task}")
    found: dict[str, Example] = {}
    while len(found) < count:
        example = TASKS[task](rng)
        if is_held_out(example):
            found[json.dumps(example, sort_keys=True)] = example
    return list(found.values())
