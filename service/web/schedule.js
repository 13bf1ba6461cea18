/**
 * The unmask schedule: how many bits of a token each round reveals. Its rule is the server's:
 * positive, not decreasing, summing to the bits of a token.
 */

/**
 * Read a schedule that somebody typed: numbers between commas or spaces.
 * @param {string} text
 * @returns {number[]} with NaN for what is no number
 */
export function readSchedule(text) {
  return text
    .split(/[\s,;]+/)
    .filter(Boolean)
    .map(Number);
}

/**
 * Say what is wrong with a schedule, or "".
 * @param {number[]} schedule
 * @param {number} bitsPerToken
 * @param {number} maxRounds 1 of a model that draws a token at once
 */
export function scheduleProblem(schedule, bitsPerToken, maxRounds = bitsPerToken) {
  if (!schedule.length) return `Give the bits of each round; together they make ${bitsPerToken}.`;
  if (!schedule.every((bits) => Number.isInteger(bits) && bits > 0)) {
    return "Each round reveals a whole number of bits, at least 1.";
  }
  const drop = schedule.findIndex((bits, i) => i > 0 && bits < schedule[i - 1]);
  if (drop > 0) {
    return `Rounds must not decrease: ${schedule[drop]} stands after ${schedule[drop - 1]}.`;
  }
  const sum = total(schedule);
  if (sum === bitsPerToken) {
    return schedule.length > maxRounds ? "This model draws all bits of a token in one round." : "";
  }
  const difference = Math.abs(bitsPerToken - sum);
  return `The rounds make ${sum} bits, ${difference} too ${sum < bitsPerToken ? "few" : "many"}: a token has ${bitsPerToken}.`;
}

/**
 * Share the bits of a token out evenly; the remainder goes to the last rounds.
 * @param {number} bitsPerToken
 * @param {number} numRounds at most bitsPerToken
 */
export function evenSchedule(bitsPerToken, numRounds) {
  const bits = Math.floor(bitsPerToken / numRounds);
  const larger = bitsPerToken % numRounds;
  return Array.from({ length: numRounds }, (_, i) => bits + (i >= numRounds - larger ? 1 : 0));
}

/** @param {number[]} schedule */
export function total(schedule) {
  return schedule.reduce((sum, bits) => sum + bits, 0);
}
