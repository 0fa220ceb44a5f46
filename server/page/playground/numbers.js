// Numbers as the page writes them: one form for each kind, everywhere. A number and its unit stay on one line.

const ZERO = -9999; // stands for minus infinity in the server's JSON

export function logProb(number) {
  return number <= ZERO ? -Infinity : number;
}

export function nats(number) {
  if (number === null || number === undefined) return "–";
  if (number <= ZERO) return "−∞";
  const size = Math.abs(number);
  const text = size > 0 && size < 0.0005 ? number.toExponential(1) : number.toFixed(3);
  return text.replaceAll("-", "−");
}

export function percent(share) {
  if (share > 0 && share < 0.0005) return "<\u00a00.1\u00a0%";
  if (share < 1 && share > 0.9995) return ">\u00a099.9\u00a0%";
  return `${(100 * share).toFixed(1)}\u00a0%`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}
