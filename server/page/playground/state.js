// What the parts of the page share, and who is told when it changes.
// In: whoever changes it says what, by topic. Out: calls to those who watch that topic, at most once a frame.

export const state = {
  models: [], // as /v1/models lists them
  model: "", // the name that is asked
  shade: "epistemic", // the number of a token that its shade tells
  turns: [], // {question, answer, body} in their order
  shown: null, // the answer that the panels are about
  pointed: null, // {answer, number} of the token under the pointer, from 0
  chosen: null, // the same, and its `option`, of the token that has, or had, the focus
};

const watchers = new Map();
const due = new Set();

export function watch(topics, act) {
  for (const topic of topics) watchers.set(topic, [...(watchers.get(topic) ?? []), act]);
}

export function changed(topic) {
  if (due.size === 0) requestAnimationFrame(tell);
  due.add(topic);
}

function tell() {
  const acts = new Set([...due].flatMap((topic) => watchers.get(topic) ?? []));
  due.clear();
  for (const act of acts) act();
}

// The entry of the model that is asked; its `softspec` says whether it is an ensemble.
export function askedModel() {
  return state.models.find((model) => model.id === state.model);
}
