"""The words by which `task_type.py` tells what a prompt wants. Data only.

Each table maps a word, or a phrase of two or three, to its weight. Words are as
`task_type.normal_words` leaves them: folded case, no punctuation (`don't` is `dont`).
"""

from collections.abc import Mapping


def _weighted(*groups: tuple[float, str]) -> dict[str, float]:
    """One table from groups of `(weight, words)`; a comma ends a word or phrase."""
    return {term.strip(): weight for weight, terms in groups for term in terms.split(",")}


CODE = _weighted(
    (
        4,
        "def, python, javascript, typescript, golang, sql, regex, html, css, cpp, bash, refactor,"
        "unit test, unit tests, stack trace, traceback, source code, pull request, compile,"
        "compiler error, codebase, docker, dockerfile, kubernetes, django, pandas, numpy,"
        "write a function, implement a function, write a program, write code, function that,"
        "program that,"
        "function to, a function, shell script, segfault, nullpointerexception, printf",
    ),
    (
        2.5,
        "implement, function, functions, algorithm, code, program, programming, java, rust,"
        "linked list, binary tree, dynamic programming, recursion, recursive, time complexity,"
        "debug, bug, script, api, endpoint, dataframe, git, commit, json schema, array, arrays,"
        "string, strings, subarray, substring, hash map, data structure, import, elif, const,"
        "boolean, returns true, return true, return false, list of, input string, parse",
    ),
    (
        1,
        "return, returns, list, lists, integer, integers, int, str, float, bool, tuple,"
        "input, output, class, method, variable, loop, sort, sorted, sorting, element, elements,"
        "ascending, descending, empty, length, index, library, module, server, database, query,"
        "exception, error, website, web, app, command, otherwise, none, given a, software",
    ),
)

REASONING = _weighted(
    (
        3.5,
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
        2,
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
        0.8,
        "more, less, than, she, he, how, many, much, number, first, second, third, if, then,"
        "rest, another, take, have, value, true, false, equal, equals, x, y, n, p, z",
    ),
)

CHAT = _weighted(
    (
        4,
        "imagine you, imagine yourself, pretend, act as, role of, persona, embody, roleplay,"
        "role play, picture yourself, speak like, talk like, in the style of, suppose you are,"
        "you are a, you are an, now you are, if you were a, short story, poem, haiku, limerick,"
        "song lyrics, blog post, travel blog, cover letter, love letter, fairy tale, screenplay,"
        "rewrite, paraphrase, proofread, movie review, tell me a joke, tell me a story, hello,"
        "hi, hey, thanks, thank you, how are you, good morning, your character, tagline,"
        "slogan, headline, write an email, write a letter, write a speech, origin story",
    ),
    (
        2.5,
        "write, compose, draft, craft, email, letter, essay, story, paragraph, blog, speech,"
        "describe your, would you, your crew, introduce yourself, captivating, compelling,"
        "engaging, vivid, descriptive, persuasive, intriguing, rhyme, poet, announcement,"
        "dialogue, outline, tone, as a pirate, as a superhero, colonist, knight, commentator,"
        "brainstorm, toast, invitation, caption, lyrics, song, novel, edit the following,"
        "grammatical errors, translate, translator, coach, in your own words, creative",
    ),
    (
        1,
        "your, my, me, please, describe, help, tell, imagine, feel, favorite, friend, short,"
        "conversation, audience, share, you, character, scene, world, life, advice",
    ),
)

EXTRACTION = _weighted(
    (
        4.5,
        "extract, extract all, extract the, named entities, key value, output in json,"
        "return the results as, output in the format, in json format, as a json, csv format,"
        "as csv, json array, json format, json string, label each, classify each,"
        "sentiment of each, into one of these categories, following data, following records,"
        "rating for each, in the following sentences, presented texts, from the text below,"
        "from the following text, from the passage, list of all the, on a scale of",
    ),
    (
        2,
        "identify the, json, csv, yaml, xml, entities, categorize, classify, sentiment,"
        "summarize the table, fields, following text, following reviews, following information,"
        "customer reviews, movie reviews, categories, tabular, columns, unique variable, count how",
    ),
)

GENERAL = _weighted(
    (
        2.5,
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
        1,
        "what, which, why, who, where, most, important, example, describe, compare, discuss,"
        "how can, how do, how does, how did, effective, strategies, impact, role, benefits,"
        "factors, following, called, term, occurs, results, because, primarily, usually",
    ),
)

TABLES: Mapping[str, Mapping[str, float]] = {
    "code": CODE,
    "reasoning": REASONING,
    "chat": CHAT,
    "extraction": EXTRACTION,
    "general": GENERAL,
}

# term -> the types it speaks for, with its weight for each
WEIGHTS: Mapping[str, tuple[tuple[str, float], ...]] = {
    term: tuple((task, table[term]) for task, table in TABLES.items() if term in table)
    for term in {term for table in TABLES.values() for term in table}
}
PHRASE_STARTS = frozenset(term.split()[0] for term in WEIGHTS if " " in term)
