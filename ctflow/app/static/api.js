/** Requests to the server, and small helpers to build the page without HTML strings. */

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>} a good answer; anything else is an error in the server's words
 */
export async function call(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  let text = `${answer.status} ${answer.statusText}`;
  try {
    text = (await answer.json()).error ?? text;
  } catch {
    // an answer without JSON has said all it has to say
  }
  throw new Error(text);
}

/** @param {string} path @param {unknown} body */
export async function post(path, body = {}) {
  const headers = { 'Content-Type': 'application/json' };
  return (await call(path, { method: 'POST', headers, body: JSON.stringify(body) })).json();
}

/** @param {string} path */
export async function get(path) {
  return (await call(path)).json();
}

/**
 * Slices of a volume, as many as the server gives at once.
 * @param {string} id @param {number} first @param {number} count @param {string} [minus]
 * @returns {Promise<Int16Array>}
 */
export async function voxels(id, first, count, minus = '') {
  const query = new URLSearchParams({ first: `${first}`, count: `${count}`, ...(minus && { minus }) });
  return new Int16Array(await (await call(`/api/volumes/${id}/voxels?${query}`)).arrayBuffer());
}

/**
 * @param {string} tag @param {Record<string, any>} [attributes] set as properties where there are such, as
 *   attributes otherwise @param {...(Node | string)} children
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in node) /** @type {any} */ (node)[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** @param {string} id @returns {any} */
export const byId = (id) => document.getElementById(id);

/** @param {number} value */
export const whole = (value) => Math.round(value).toLocaleString('en');
