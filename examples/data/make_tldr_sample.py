"""Makes `tldr_sample.jsonl`: 240 invented forum posts and their summaries, in the format of trl-lib/tldr.

    python examples/data/make_tldr_sample.py

Columns: `prompt` ("SUBREDDIT: ... TITLE: ... POST: ... TL;DR:") and `completion` (a one-sentence summary). Each post
is put together from the sentences of one scenario below, with names, ages and things drawn by a seeded generator; no
post is taken from anywhere. It is there so that the examples run without a network; it is not a benchmark.
"""

# ruff: noqa: E501 - sentences stay whole

import json
import random
import re
from pathlib import Path
from typing import NamedTuple

NUM_ROWS = 240
SEED = 7
TARGET = Path(__file__).with_name("tldr_sample.jsonl")


class Scenario(NamedTuple):
    """One kind of post. `{slots}` are filled with the same choices everywhere in a post."""

    subreddit: str
    titles: tuple[str, ...]
    openings: tuple[str, ...]
    middles: tuple[str, ...]
    turns: tuple[str, ...]
    questions: tuple[str, ...]
    summaries: tuple[str, ...]


SLOTS: dict[str, tuple[str, ...]] = {
    "name": ("Anna", "Ben", "Carla", "Deniz", "Emil", "Farah", "Greta", "Hassan", "Ida", "Jonas", "Kim", "Lena", "Marek",
             "Nora", "Oscar", "Priya"),
    "friend": ("Sam", "Toni", "Robin", "Alex", "Charlie", "Jo", "Andrea", "Luca"),
    "age": ("19", "21", "23", "24", "26", "27", "29", "31", "34", "38"),
    "months": ("two months", "four months", "half a year", "a year", "a year and a half", "almost three years"),
    "city": ("Leeds", "Porto", "Austin", "Toronto", "Ghent", "Cork", "Denver", "Bergen", "Utrecht", "Perth"),
    "job": ("a nurse", "a line cook", "a junior accountant", "a bus driver", "a teacher", "a lab technician",
            "a web developer", "a carpenter"),
    "money": ("80", "150", "240", "400", "650", "900", "1,200", "2,000"),
    "hobby": ("climbing", "choir practice", "tabletop gaming", "running", "pottery", "fishing", "salsa", "chess"),
    "pet": ("an old beagle", "two kittens", "a nervous greyhound", "a rescue terrier", "a very loud parrot",
            "a three-legged cat"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "event": ("my sister's wedding", "my grandmother's 80th birthday", "our yearly family trip", "my graduation dinner",
              "a friend's farewell party"),
    "thing": ("bicycle", "laptop", "camera", "guitar", "coffee machine", "tent", "sewing machine"),
    "subject": ("statistics", "organic chemistry", "linear algebra", "Latin", "macroeconomics", "thermodynamics"),
    "dish": ("lasagne", "ramen", "a birthday cake", "sourdough bread", "paella", "dumplings"),
    "weight": ("6", "9", "12", "15", "20", "25"),
    "noise": ("plays the drums", "vacuums", "moves furniture", "sings along to musicals", "practises the trumpet",
              "holds loud video calls"),
    "hour": ("five in the morning", "six in the morning", "eleven at night", "midnight", "one in the morning"),
}  # fmt: skip

SCENARIOS = (
    Scenario(
        "relationships",
        ("My partner {name} ({age}) never has time because of {hobby}", "Is it fair to ask {name} to give up some {hobby}?"),
        ("{name} and I have been together for {months} and live in a small flat in {city}.",
         "I have been dating {name} for {months}, and until recently everything was easy."),
        ("Since spring, {hobby} has taken over every evening, and on {day} we did not even eat together.",
         "What began as {hobby} once a week is now four evenings, plus most of every {day}.",
         "I work as {job}, so the evenings are the only time we could see each other."),
        ("When I brought it up, I was told that I am free to come along, but I do not enjoy {hobby} at all.",
         "Last {day} was {event}, and I went alone because there was a {hobby} meeting.",
         "{friend} says I should be glad that my partner has a hobby, and perhaps that is right."),
        ("How can I ask for more time together without sounding as if I want to forbid something?",
         "Am I asking for too much, or should we talk about what each of us expects?"),
        ("Partner spends nearly every evening on {hobby}; I want more time together without forbidding it.",
         "{name} of {months} put {hobby} before me, even missing {event}; how do I bring it up fairly?"),
    ),
    Scenario(
        "personalfinance",
        ("Lent {money} dollars to {friend} and do not know how to ask for it", "{friend} owes me {money} and bought a {thing}"),
        ("I am {age}, work as {job} in {city}, and save what I can.",
         "About {months} ago my friend {friend} asked me for {money} dollars to cover the rent."),
        ("We agreed on small monthly payments, but nothing in writing.",
         "The first two payments came, then there was always a reason to wait until next month.",
         "I did not press, because I knew that work was slow."),
        ("Then on {day} I saw pictures of a brand-new {thing}, and I felt rather stupid.",
         "Now my own car needs a repair, and the money would cover just about all of it.",
         "When I asked, the answer was that friends do not count every coin."),
        ("Is there a polite way to get the money back, or should I treat it as the price of a lesson?",
         "Should I ask for a written plan now, or let it go and never lend again?"),
        ("Lent a friend {money} dollars without a contract, payments stopped, friend bought a {thing}; how do I ask for it?",
         "Friend stopped paying back {money} dollars and I need it now; ask for a written plan or let it go?"),
    ),
    Scenario(
        "AskDocs",
        ("Tired all day for {months}, blood tests are fine", "{age}, always exhausted, what should I ask next?"),
        ("I am {age}, otherwise healthy, and work as {job}.",
         "For {months} I have been waking up as tired as I went to bed."),
        ("I sleep about eight hours, do not smoke, and drink coffee only in the morning.",
         "My doctor in {city} tested iron, thyroid and vitamin D, and all of it was normal.",
         "I gave up {hobby} because I had no energy left for it."),
        ("{friend}, with whom I share a flat, says that I snore and sometimes stop breathing for a moment.",
         "On {day} I nearly fell asleep at a red light, which frightened me.",
         "I gained about {weight} pounds this year without eating differently."),
        ("Would a sleep study make sense, and how do I ask for one without seeming difficult?",
         "What should I tell my doctor at the next appointment so that this is taken seriously?"),
        ("Tired for {months} despite normal blood tests; flatmate hears me snore; should I ask for a sleep study?",
         "Always exhausted at {age}, tests normal; wondering how to get the doctor to look further."),
    ),
    Scenario(
        "college",
        ("Failed the {subject} midterm and thinking about dropping it", "Should I retake {subject} or change my major?"),
        ("I am a second-year student in {city} and had good grades until this term.",
         "I have never been great with numbers, but {subject} is required for my degree."),
        ("I studied for three weeks, went to every tutorial, and still got less than half of the points.",
         "The lecturer goes through forty slides an hour and takes no questions.",
         "I also work as {job} on weekends, because I need the {money} dollars a month."),
        ("On {day} I learned that half of the class failed as well, but the grade will not be adjusted.",
         "My study partner {friend} has already dropped the course, so I would be on my own.",
         "The last day to withdraw without a mark is next {day}."),
        ("Is it better to withdraw now, or to fight for a bare pass?",
         "Has anyone turned a course like this around in the second half?"),
        ("Failed the {subject} midterm despite studying; withdraw before the deadline or fight for a pass?",
         "Struggling with required {subject} while working weekends; is it better to drop it now?"),
    ),
    Scenario(
        "pettyrevenge",
        ("My neighbour {noise} at {hour}, so I found a way", "A polite answer to the neighbour who {noise} at {hour}"),
        ("I moved into a building with paper walls in {city} about {months} ago.",
         "My upstairs neighbour {name} is friendly in the stairwell and a menace everywhere else."),
        ("Almost every day at {hour}, somebody up there {noise}.",
         "I asked nicely twice, left a note with chocolate, and spoke to the landlord; nothing changed.",
         "I work as {job} and need my sleep more than most."),
        ("Then I noticed that our Wi-Fi networks show up next to each other, so I renamed mine to 'Flat 3 can hear you'.",
         "So I took up {hobby}, invited the whole group to my place, and put the meeting on {day} at dawn.",
         "So I thanked {name} in the house chat for the free concerts and posted the timetable for everybody."),
        ("It has been quiet for a week, and the neighbour now greets me very carefully.",
         "Since then there has not been a sound, and two other neighbours brought me cake."),
        ("Neighbour {noise} at {hour} and ignored requests, so I embarrassed them a little; now it is quiet.",
         "After polite requests failed, a small public hint stopped the neighbour who {noise} at {hour}."),
    ),
    Scenario(
        "dogs",
        ("Moving to {city} with {pet}, any advice?", "How do I get {pet} used to a new flat?"),
        ("In a few weeks I start a new job as {job}, and we have to move from the country to {city}.",
         "I have had {pet} for {months}, and we have always lived in a house with a garden."),
        ("The new flat is on the fourth floor, with a park about ten minutes away.",
         "New people are fine after a while, but lifts and buses cause real panic.",
         "I will be out of the house from eight to five, except on {day}."),
        ("My friend {friend} offered to look in at noon, but only for the first month.",
         "A test visit last {day} ended with an hour of howling and a complaint from next door.",
         "A sitter would cost about {money} dollars a month, which is at the edge of what I can pay."),
        ("What helped you in the first weeks, and how slowly should I go?",
         "Should I take time off at the beginning, or start the new routine at once?"),
        ("Moving to a flat in {city} with {pet} that panics easily; looking for ways to make the first weeks calm.",
         "New job, new flat and {pet} not used to being alone; how slowly should I change the routine?"),
    ),
    Scenario(
        "tifu",
        ("TIFU by cooking {dish} for {event}", "TIFU by trusting my memory while making {dish}"),
        ("This happened last {day}, and I am still finding bits of it behind the stove.",
         "I am {age} and until this week I thought I could cook."),
        ("It was {event}, and I had promised to bring {dish} for twenty people.",
         "I did not look at the recipe, because I had made {dish} once, {months} ago.",
         "While it was in the oven, I sat down to read about {hobby} and forgot the time."),
        ("It turns out that the jar next to the sugar was salt, a whole cup of it.",
         "The smoke alarm went off, the whole building in {city} stood in the street, and {name} from work was among them.",
         "My friend {friend} took the first bite, smiled bravely, and then ran to the sink."),
        ("We ordered pizza for {money} dollars, and the story was told in every toast.",
         "I am now in charge of napkins at all family events, for ever."),
        ("Made {dish} from memory for {event}, ruined it, and everyone had to order pizza.",
         "Trusted my memory with {dish}, mixed things up, and am now only allowed to bring napkins."),
    ),
    Scenario(
        "loseit",
        ("Down {weight} pounds, then stuck for {months}", "{weight} pounds gone, how do I get past the plateau?"),
        ("I am {age}, work as {job}, and sit or stand in one place most of the day.",
         "I began in January because stairs had become a problem."),
        ("I count what I eat, cook for myself, and walk to work through {city}.",
         "In the first weeks the weight went down almost by itself, {weight} pounds in all.",
         "Twice a week I go to {hobby} with {friend}, which is the best part."),
        ("For {months}, the scale has not moved, although I changed nothing.",
         "On {day} I ate a whole pan of {dish} out of frustration, and felt awful afterwards.",
         "My clothes do fit better, so perhaps something is still going on."),
        ("Did you eat less, move more, or simply wait?",
         "How do you stay patient when the number does not change?"),
        ("Lost {weight} pounds, then nothing for {months} without changing anything; how did you get past a plateau?",
         "Weight stuck after {weight} pounds although clothes fit better; eat less, move more, or wait?"),
    ),
    Scenario(
        "jobs",
        ("New boss reads every message, should I leave?", "Good pay in {city}, terrible manager, what would you do?"),
        ("I have worked as {job} at the same place for {months}.",
         "I am {age} and this is my first job with a contract and a pension."),
        ("In autumn we got a new manager, {name}, who wants to be copied on every single message.",
         "We now write a report each evening about what we did in every half hour.",
         "Two of the best people have left, and their work is shared among the rest of us."),
        ("On {day} I was asked why I had been away from my desk for eleven minutes.",
         "Another company offered me {money} dollars a month less, but the team seems kind; my friend {friend} works there.",
         "I told human resources, and the next day {name} knew about it."),
        ("Would you take less money for some peace, or wait until the manager moves on?",
         "How do I explain in an interview why I want to leave without speaking badly of anyone?"),
        ("New manager controls every minute and good people leave; take a calmer job for less money or wait?",
         "Micromanaged since autumn and thinking of leaving; how do I explain it well in interviews?"),
    ),
    Scenario(
        "legaladvice",
        ("Sold a {thing} online, buyer wants the money back", "Buyer says the {thing} is broken after {months}"),
        ("I sold my used {thing} to a person in {city} for {money} dollars.",
         "This was a private sale between two people, paid in cash on a {day}."),
        ("The buyer, {name}, tried it for a quarter of an hour and was happy with it.",
         "The advertisement said 'used, as seen', and I still have all of our messages.",
         "I even included the spare parts, because I was moving house."),
        ("Now, {months} later, I get daily messages that it never worked and that a lawyer will write to me.",
         "Yesterday somebody rang at my door and asked my flatmate {friend} when I would be home.",
         "The pictures that I was sent show a crack that was certainly not there before."),
        ("Do I have to take it back, and should I answer these messages at all?",
         "What should I keep as evidence, and when should I call the police?"),
        ("Sold a used {thing} privately as seen; buyer claims it is broken {months} later and threatens me; must I refund?",
         "Buyer of my {thing} demands {money} dollars back long after the sale; what should I keep as evidence?"),
    ),
)  # fmt: skip


def make_row(rng: random.Random, scenario: Scenario) -> dict[str, str]:
    """A post of six to eight sentences and its summary, all about the same choices."""
    chosen = {slot: rng.choice(options) for slot, options in SLOTS.items()}
    sentences = [
        *rng.sample(scenario.openings, rng.randint(1, 2)),
        *rng.sample(scenario.middles, rng.randint(2, 3)),
        *rng.sample(scenario.turns, rng.randint(2, 3)),
        rng.choice(scenario.questions),
    ]
    title, summary = rng.choice(scenario.titles), rng.choice(scenario.summaries)
    post = " ".join(_filled(sentence, chosen) for sentence in sentences)
    prompt = f"SUBREDDIT: r/{scenario.subreddit}\n\nTITLE: {_filled(title, chosen)}\n\nPOST: {post}\n\nTL;DR:"
    return {"prompt": prompt, "completion": " " + _filled(summary, chosen)}


def make_rows(num_rows: int = NUM_ROWS, seed: int = SEED) -> list[dict[str, str]]:
    """Rows that differ, scenarios in turn, then shuffled."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, str]] = {}
    while len(rows) < num_rows:
        row = make_row(rng, SCENARIOS[len(rows) % len(SCENARIOS)])
        rows.setdefault(row["prompt"], row)
    shuffled = list(rows.values())
    rng.shuffle(shuffled)
    return shuffled


def _filled(template: str, chosen: dict[str, str]) -> str:
    text = template.format(**chosen)
    return re.sub(r"^[a-z]", lambda first: first.group().upper(), text)


def main() -> None:
    rows = make_rows()
    TARGET.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"wrote {len(rows)} rows to {TARGET.name}")


if __name__ == "__main__":
    main()
