"""The words that the task types were thought to be told by, before anything was learned.

Data only: a word or phrase and how strongly, by hand and in tenths, it is believed to speak for a
type. `fitting.py` starts from here, moves each weight by what labelled prompts show, and writes
`shared/domain/task_words.py`, which is what routing reads. `^` marks how a text must begin and
`$` how it must end. Terms are read without their spaces, as the prompts are; one of fewer than
four letters would be found inside other words and cannot be used.
"""

from collections.abc import Mapping

from shared.domain.task_type import SHORTEST

# Of four letters, only those that hardly ever stand inside other words.
_FOUR = frozenset({"html", "json", "yaml", "hash", "loop", "sqrt", "dice", "poem", "blog", "joke"})


def _weighted(*groups: tuple[int, str]) -> dict[str, int]:
    """One table from groups of `(tenths, words)`; a comma ends a word or phrase."""
    found = {}
    for weight, terms in groups:
        for term in terms.split(","):
            squeezed = term.replace(" ", "")
            plain = squeezed.isalnum()
            if not plain or len(squeezed) > SHORTEST or " " in term.strip() or squeezed in _FOUR:
                found[squeezed] = weight
    return {term: weight for term, weight in found.items() if len(term) >= SHORTEST}


CODE = _weighted(
    (
        40,
        "def, python, javascript, typescript, golang, sql, regex, html, css, cpp, bash, refactor,"
        "unit test, unit tests, stack trace, traceback, source code, pull request, compile,"
        "compiler error, codebase, docker, dockerfile, kubernetes, django, pandas, numpy,"
        "^def, ^import, ^from typing, ^class, from typing import, returns true if, list int,"
        "list str, javascript, c program, sql query, select from, return self,"
        "write a function, implement a function, write a program, write code, function that,"
        "program that,"
        "function to, a function, shell script, segfault, nullpointerexception, printf",
    ),
    (
        25,
        "implement, function, functions, algorithm, code, program, programming, java, rust,"
        "linked list, binary tree, dynamic programming, recursion, recursive, time complexity,"
        "debug, bug, script, api, endpoint, dataframe, git, commit, json schema, array, arrays,"
        "string, strings, subarray, substring, hash map, data structure, import, elif, const,"
        "boolean, returns true, return true, return false, list of, input string, parse",
    ),
    (
        10,
        "return, returns, list, lists, integer, integers, int, str, float, bool, tuple,"
        "input, output, class, method, variable, loop, sort, sorted, sorting, element, elements,"
        "ascending, descending, empty, length, index, library, module, server, database, query,"
        "exception, error, website, web, app, command, otherwise, none, given a, software",
    ),
)

REASONING = _weighted(
    (
        35,
        "how many, how much, how long, how far, how old, how fast, calculate, solve, probability,"
        "equation, equations, step by step, what is the total, in total, as many, twice as,"
        "times as, prove, proof, theorem, polynomial, integral, derivative, eigenvalue,"
        "eigenvalues, matrix, subgroup, abelian, homomorphism, isomorphic, fallacy, fallacious,"
        "premise, premises, propositional, predicate logic, truth table, syllogism, statement 1,"
        "wff, velocity, acceleration, voltage, resistor, resistance, capacitor, wavelength,"
        "ols, autocorrelation, heteroscedasticity, estimator, regression, residuals,"
        "neural network, bayesian, svm, overfitting, gradient descent, standard deviation,"
        "momentum, photon, electron, electrons, torque, inductance, converges, divisible,"
        "square root, remainder, logically, riddle, puzzle, estimate, stationary, stepbystep,"
        "percentage chance, real numbers, minimum value, maximum value, confidence interval,"
        "fallacies, refraction, capacitance, permittivity, dielectric, if and only if, mole,"
        "closed loop, random sample, null hypothesis, odds, how often, how tall, how heavy",
    ),
    (
        20,
        "total, average, percent, remaining, each, half, twice, per, dollars, cents, miles,"
        "hours, hour, minutes, cost, costs, bought, buy, buys, sells, sold, earns, spend, spends,"
        "day, days, week, weeks, left over, mass, force, energy, electric, magnetic, charge,"
        "current, circuit, frequency, kg, meters, radius, triangle, rectangle, circle, angle,"
        "area, perimeter, diameter, volume, speed, distance, temperature, heat, entropy, moles,"
        "molar, ph, atom, atoms, orbital, nmr, field, group, ring, finite, vector, vectors,"
        "linear, quadratic, function f, fx, variance, sample, mean, median, hypothesis, random,"
        "dice, coin, coins, marbles, deck, kernel, classifier, training, learning rate, argument,"
        "valid, conclusion, implies, logic, logical, therefore, contradiction, conditional,"
        "disjunction, conjunction, factor, prime, multiple, decimal, fraction, ratio, sum,"
        "product, difference, number of, older, younger, ate, eats, gives, times, length,"
        "feet, inches, pounds, ounces, gallons, liters, joules, newton, newtons, watts, tax,"
        "interest rate, profit, price, discount, next number, next in the sequence, spins,"
        "overtaken, direction, which direction, shadow, brothers, sisters, siblings, faster,"
        "slower, isotope, ion, ions, oxidation, reaction, equilibrium constant, transformer,"
        "generator, impedance, armature, diode, gas, lens, laser, rotating, pendulum, boson,"
        "percentage, chance, expression, operation, subject to, convection, analogy, deduce,"
        "infer, axiom, graph, node, nodes, tree, queue, digits, divided, plus, minus, altogether,"
        "time series, white noise, model, parameters, likelihood, dimension, convex, true false",
    ),
    (
        8,
        "more, less, than, she, he, how, many, much, number, first, second, third, if, then,"
        "rest, another, take, have, value, true, false, equal, equals, x, y, n, p, z",
    ),
)

CHAT = _weighted(
    (
        40,
        "^hello, ^hi there, ^thanks, ^thank you, ^good morning, ^how are you, ^imagine, ^pretend,"
        "^you are a, ^you are an, ^as a, ^as an, ^act as, ^suppose you, ^write a,"
        "^picture yourself, ^write an, ^compose, ^draft, ^craft, ^rewrite, ^translate,"
        "^please assume,"
        "^please take on, ^assume the role, ^take on the, ^now you are, ^lets play, ^tell me a,"
        "pretend to be, pretend you, assume the role, take on the role, take on the persona,"
        "in character, stay in character, you will be my, i want you to act, video script,"
        "persuasive email, how would you, would you say, your daily, your life as, your feelings,"
        "your experience, your emotions, your adventures, your love, wedding, birthday card,"
        "catchy, polite email, product description, press release, monologue, soliloquy,"
        "imagine you, imagine yourself, pretend, act as, role of, persona, embody, roleplay,"
        "role play, picture yourself, speak like, talk like, in the style of, suppose you are,"
        "you are a, you are an, now you are, if you were a, short story, poem, haiku, limerick,"
        "song lyrics, blog post, travel blog, cover letter, love letter, fairy tale, screenplay,"
        "rewrite, paraphrase, proofread, movie review, tell me a joke, tell me a story, hello,"
        "hi, hey, thanks, thank you, how are you, good morning, your character, tagline,"
        "slogan, headline, write an email, write a letter, write a speech, origin story",
    ),
    (
        25,
        "write, compose, draft, craft, email, letter, essay, story, paragraph, blog, speech,"
        "describe your, would you, your crew, introduce yourself, captivating, compelling,"
        "engaging, vivid, descriptive, persuasive, intriguing, rhyme, poet, announcement,"
        "dialogue, outline, tone, as a pirate, as a superhero, colonist, knight, commentator,"
        "brainstorm, toast, invitation, caption, lyrics, song, novel, edit the following,"
        "grammatical errors, translate, translator, coach, in your own words, creative",
    ),
    (
        10,
        "your, my, me, please, describe, help, tell, imagine, feel, favorite, friend, short,"
        "conversation, audience, share, you, character, scene, world, life, advice",
    ),
)

EXTRACTION = _weighted(
    (
        45,
        "extract, extract all, extract the, named entities, key value, output in json,"
        "return the results as, output in the format, in json format, as a json, csv format,"
        "as csv, json array, json format, json string, label each, classify each,"
        "sentiment of each, into one of these categories, following data, following records,"
        "rating for each, in the following sentences, presented texts, from the text below,"
        "from the following text, from the passage, list of all the, on a scale of",
    ),
    (
        20,
        "identify the, json, csv, yaml, xml, entities, categorize, classify, sentiment,"
        "summarize the table, fields, following text, following reviews, following information,"
        "customer reviews, movie reviews, categories, tabular, columns, unique variable, count how",
    ),
)

GENERAL = _weighted(
    (
        25,
        "^what are, ^what is the, ^why do, ^why does, ^why might, ^how can, ^how do, ^how does,"
        "^explain, ^discuss, ^what if, ^who was, ^who is, ^when did, ^where is, ^which countr,"
        "according to, refers to, which of the following best describes, best describes, what is,"
        "most likely, is an example of, known as, explain, difference between, what are,"
        "the main, advantages, causes of, history, moral, morally wrong, ethical, law, legal,"
        "court, government, political, economic, culture, religion, disease, patient, cells,"
        "protein, species, gene, genes, dna, rna, virus, brain, muscle, psychology, marketing,"
        "social, society, treaty, war, president, constitution, international, philosophy,"
        "century, population, nutrition, diet, vitamin, hormone, symptoms, treatment, clinical,"
        "evolution, planet, planets, stars, galaxy, theory, security, attack, attacker,"
        "encryption, public, management, employees, consumers, trade, inflation, gdp, monetary,"
        "fiscal, unemployment, country, countries, americans, survey, women, children, human",
    ),
    (
        10,
        "what, which, why, who, where, most, important, example, describe, compare, discuss,"
        "how can, how do, how does, how did, effective, strategies, impact, role, benefits,"
        "factors, following, called, term, occurs, results, because, primarily, usually",
    ),
)

TABLES: Mapping[str, Mapping[str, int]] = {
    "code": CODE,
    "reasoning": REASONING,
    "general": GENERAL,
    "chat": CHAT,
    "extraction": EXTRACTION,
}

# What is no word: digits in a row, a quiz (`… Answer:`), a text of very few letters, one too long
# to be read whole. Tenths for code, reasoning, general, chat, extraction.
SIGNS: Mapping[str, tuple[int, ...]] = {
    "*always": (0, 0, 15, 0, 0),
    "*number": (0, 6, 0, 0, 0),
    "*quiz": (-20, 0, 10, -40, -20),
    "*quiz number": (0, -4, 0, 0, 0),
    "*brief": (0, 0, 0, 50, 0),
    "*long": (0, 0, 0, 0, 5),
}
