/** The page: what the server says of queue and library goes onto it, what the user wants goes to the server. */
import { byId, call, get, make, post, whole } from './api.js';
import { describe } from './facts.js';
import { FlatPanel } from './flat.js';
import * as form from './form.js';
import { canDraw, Panel } from './viewer.js';

const about = await get('/api/about');
const drawn = canDraw();
/** @type {{queue: any[], volumes: any[]}} */
let state = { queue: [], volumes: [] };
/** @type {string} what is looked at: `v3`, or `v3-v4` for a comparison */
let shown = '';
/** @type {(Panel | FlatPanel)[]} */
let panels = [];
let windowName = 'lung';
let layout = 'all';
let measuring = false;
/** @type {Set<string>} jobs of this page whose volumes are to be shown */
const mine = new Set();
let detailsOf = '';

const volume = (/** @type {string} */ id) => state.volumes.find((entry) => entry.id === id);
const windowOf = (/** @type {Panel | FlatPanel} */ panel) => about.windows[panel.options.minus ? 'difference' : windowName];

// ---- what is looked at -------------------------------------------------------------------------------------------

/** @param {string} id a volume @param {string} [other] the one beside it */
async function show(id, other = '') {
  const wanted = other ? `${id}-${other}` : id;
  if (wanted === shown) return;
  shown = wanted;
  panels.forEach((panel) => panel.close());
  const ids = other ? [id, other] : [id];
  const options = ids.map((one) => ({ id: one, title: titleOf(volume(one), Boolean(other)), pair: Boolean(other), moved }));
  if (other) {
    const minus = { id: other, minus: id, title: 'Difference: second less first', pair: true, moved };
    options.push(/** @type {any} */ (minus));
  }
  const Kind = drawn ? Panel : FlatPanel;
  byId('welcome').hidden = true;
  panels = options.map((one) => new Kind(byId('panels'), one));
  const now = panels;
  await Promise.all(now.map((panel) => panel.loading));
  if (now !== panels) return;
  panels.forEach((panel) => panel.arrange(layout));
  if (measuring) panels.forEach((panel) => panel.ruler(true));
  await follow();
  renderLibrary();
}

/** @param {any} entry @param {boolean} long */
function titleOf(entry, long) {
  const seed = entry.seed === null ? '' : `seed ${entry.seed}`;
  return [entry.title, long ? '' : seed].filter(Boolean).join(' · ');
}

/** Bring what is looked at up to what the server has. */
async function follow() {
  const ids = shown.split('-').filter(Boolean);
  if (!ids.length) return;
  if (ids.some((id) => !volume(id))) {
    closeView();
    return;
  }
  await Promise.all(panels.map((panel) => {
    const entry = volume(panel.options.id);
    const first = panel.options.minus ? volume(panel.options.minus) : entry;
    const both = { ...entry, done: Math.min(entry.done, first.done), expected: Math.max(entry.expected, first.expected) };
    if (first.state === 'growing') both.state = 'growing';
    return panel.sync(both, windowOf(panel));
  }));
  await details(ids[0]);
}

function closeView() {
  panels.forEach((panel) => panel.close());
  panels = [];
  shown = detailsOf = '';
  byId('welcome').hidden = false;
  byId('facts').replaceChildren();
  byId('cursor').textContent = '\u00a0';
}

/** @param {string} id */
async function details(id) {
  const entry = volume(id);
  const partner = shown.includes('-') ? volume(shown.split('-')[1]) : null;
  const stage = state.queue.find((job) => job.state === 'running' && job.volumes.includes(id))?.stage ?? '';
  const version = [id, entry.state, entry.pair, partner?.id, partner?.state, stage === 'measuring',
    entry.state === 'growing' ? '' : entry.done].join();
  if (version === detailsOf) return;
  detailsOf = version;
  const known = await get(`/api/volumes/${id}`);
  const sections = describe(known, about.formats, actionsFor(known));
  if (partner) sections.push(...describe(await get(`/api/volumes/${partner.id}`), about.formats, []));
  if (detailsOf === version) byId('facts').replaceChildren(...sections);
}

/** @param {any} entry */
function actionsFor(entry) {
  const actions = [];
  const button = (/** @type {string} */ text, /** @type {() => any} */ act) =>
    make('button', { type: 'button', onclick: () => attempt(act) }, text);
  if (entry.state === 'growing' || !entry.done) return actions;
  const onGrid = volume(entry.grid) ?? (about.ready && entry.side === about.side ? entry : null);
  if (onGrid) actions.push(button('Continue from here', () => form.startFrom(onGrid)));
  const pair = volume(onGrid?.pair ?? '');
  if (onGrid?.kind === 'opened' && !pair) {
    actions.push(button('Reconstruct by the A-VAE', () => ask(`/api/volumes/${onGrid.id}/reconstruct`)));
  }
  if (pair && !shown.includes('-')) actions.push(button('Compare', () => showPair(onGrid)));
  const first = shown.split('-')[0];
  if (shown.includes('-')) actions.push(button('Show alone', () => show(first)));
  return actions;
}

/** @param {any} entry with the volume it belongs to, the older one first */
function showPair(entry) {
  const ids = [entry.id, entry.pair].sort((a, b) => Number(a.slice(1)) - Number(b.slice(1)));
  return show(ids[0], ids[1]);
}

// ---- crosshair, window, planes -----------------------------------------------------------------------------------

/** @param {any} panel @param {any} mm @param {number} hu @param {any} vox */
function moved(panel, mm, hu, vox) {
  for (const other of panels) if (other !== panel) other.moveTo(mm ?? vox);
  if (!mm) return;
  const entry = volume(panel.options.id);
  const slice = Math.round(vox[2]);
  const part = entry?.kept && !panel.options.minus ? (slice < entry.kept ? ' (kept)' : ' (written)') : '';
  const value = slice >= panel.done ? 'not drawn yet' : `${whole(hu)} HU`;
  const side = (/** @type {number} */ x, /** @type {string} */ a, /** @type {string} */ b) => `${Math.abs(x).toFixed(0)} mm ${x < 0 ? a : b}`;
  byId('cursor').textContent = `${value} · slice ${slice}${part} · ${side(mm[0], 'left', 'right')}, ` +
    `${side(mm[1], 'back', 'front')}, ${mm[2].toFixed(0)} mm up`;
}

/** @param {string} name */
function chooseWindow(name) {
  windowName = name;
  panels.forEach((panel) => panel.options.minus || panel.setWindow(name, windowOf(panel)));
  press('windows', 'window', name);
}

/** @param {string} name */
function chooseLayout(name) {
  layout = name;
  panels.forEach((panel) => panel.arrange(name));
  press('layouts', 'layout', name);
}

/** @param {string} group @param {string} key @param {string} value */
function press(group, key, value) {
  for (const button of byId(group).children) button.setAttribute('aria-pressed', `${button.dataset[key] === value}`);
}

function toggleRuler() {
  measuring = !measuring;
  panels.forEach((panel) => panel.ruler(measuring));
  byId('ruler').setAttribute('aria-pressed', `${measuring}`);
}

function toggleKeys() {
  byId('keys').hidden = !byId('keys').hidden;
  byId('keys-button').setAttribute('aria-expanded', `${!byId('keys').hidden}`);
}

const reset = () => panels.forEach((panel) => panel.reset());
const step = (/** @type {number} */ x, /** @type {number} */ y, /** @type {number} */ z) => panels[0]?.step(x, y, z);
const zoom = (/** @type {number} */ factor) => panels.forEach((panel) => panel.zoom(factor));

/** The image's left is the patient's right. @type {Record<string, () => void>} */
const KEYS = {
  1: () => chooseWindow('lung'), 2: () => chooseWindow('soft'), 3: () => chooseWindow('bone'),
  4: () => chooseLayout('all'), 5: () => chooseLayout('axial'), 6: () => chooseLayout('coronal'),
  7: () => chooseLayout('sagittal'), 8: () => chooseLayout('render'), 0: reset,
  ArrowUp: () => step(0, 0, 1), ArrowDown: () => step(0, 0, -1), PageUp: () => step(0, 0, 8), PageDown: () => step(0, 0, -8),
  ArrowLeft: () => step(1, 0, 0), ArrowRight: () => step(-1, 0, 0), w: () => step(0, 1, 0), s: () => step(0, -1, 0),
  '+': () => zoom(1.25), '=': () => zoom(1.25), '-': () => zoom(0.8), r: toggleRuler, '?': toggleKeys,
};

byId('viewer').addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || target.tagName === 'INPUT') return;
  event.stopPropagation(); // the viewer has keys of its own for other uses
  const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
}, { capture: true });

// ---- queue and library -------------------------------------------------------------------------------------------

function renderProgress() {
  const running = state.queue.find((job) => job.state === 'running' && job.kind !== 'load');
  const waiting = state.queue.filter((job) => job.state === 'waiting');
  byId('progress').hidden = !running && !waiting.length;
  byId('cancel').hidden = !running;
  byId('cancel').onclick = () => running && attempt(() => post(`/api/jobs/${running.id}/cancel`));
  byId('progress-title').textContent = running?.title ?? '';
  byId('progress-text').textContent = running ? progressText(running) : '';
  const bar = byId('progress-bar');
  bar.hidden = !running;
  if (running?.expected) bar.value = running.done / running.expected;
  else bar.removeAttribute('value');
  byId('queue').replaceChildren(...waiting.map((job) => make('li', {}, make('span', {}, `Waiting: ${job.title}`),
    make('button', { type: 'button', 'aria-label': `Cancel ${job.title}`, onclick: () => attempt(() => post(`/api/jobs/${job.id}/cancel`)) },
      'Cancel'))));
}

/** @param {any} job */
function progressText(job) {
  const parts = [];
  if (job.stage === 'drawing' && !job.done) parts.push(`drawing the first block, step ${job.evaluations}`);
  else if (job.done) parts.push(`${job.done} of about ${job.expected} slices`);
  if (job.stage && job.stage !== 'drawing') parts.push(job.stage);
  if (job.rate && job.stage !== 'measuring') parts.push(`${job.rate.toFixed(1)} slices/s`);
  if (job.seconds_left !== null && job.stage !== 'measuring') parts.push(`${Math.ceil(job.seconds_left)} s left`);
  return parts.join(' · ');
}

function renderLibrary() {
  const current = new Set(shown.split('-'));
  byId('library-empty').hidden = state.volumes.length > 0;
  const items = [...state.volumes].reverse().map((entry) => {
    const image = make('img', { alt: '', width: 48, height: 48, loading: 'lazy' });
    if (entry.done) image.src = `/api/volumes/${entry.id}/thumbnail.png?state=${entry.state}`;
    const seed = entry.seed === null ? '' : ` · seed ${entry.seed}`;
    const stateText = entry.state === 'whole' ? '' : ` · ${entry.state}`;
    const choose = make('button', {
      type: 'button', className: 'choose', onclick: () => attempt(() => open(entry)),
      'aria-current': `${current.has(entry.id)}`,
    }, image, make('span', {}, make('span', { className: 'title' }, entry.title),
      make('span', { className: 'small' }, `${entry.done} slices${seed}${stateText}`)));
    const remove = make('button', {
      type: 'button', className: 'remove', 'aria-label': `Remove ${entry.title}`, title: 'Remove',
      disabled: entry.state === 'growing', onclick: () => attempt(() => removeVolume(entry)),
    }, '×');
    return make('li', {}, choose, remove);
  });
  const focused = [...byId('library').querySelectorAll('button')].indexOf(document.activeElement);
  byId('library').replaceChildren(...items);
  if (focused >= 0) byId('library').querySelectorAll('button')[focused]?.focus();
}

/** @param {any} entry @returns {Promise<void>} */
function open(entry) {
  const together = entry.pair && volume(entry.pair) && (entry.kind === 'generated' || entry.kind === 'reconstruction');
  return together ? showPair(entry) : show(entry.id);
}

/** @param {any} entry */
async function removeVolume(entry) {
  await call(`/api/volumes/${entry.id}`, { method: 'DELETE' });
  form.forget(entry.id);
}

// ---- asking the server -------------------------------------------------------------------------------------------

/** @param {() => any} act what may fail in the server's words */
async function attempt(act) {
  form.problem('');
  try {
    await act();
  } catch (error) {
    form.problem(/** @type {Error} */ (error).message);
  }
}

/** @param {string} path @param {unknown} [body] asks for a job whose volumes are shown as soon as there are any */
async function ask(path, body) {
  mine.add((await post(path, body)).id);
  watchJobs();
}

function watchJobs() {
  for (const job of state.queue) {
    if (!mine.has(job.id)) continue;
    if (job.state === 'failed') form.problem(job.message);
    const there = job.volumes.map(volume).filter(Boolean);
    if (there.length && there.length === job.volumes.length) attempt(() => open(there[0]));
    if (there.length || !['waiting', 'running'].includes(job.state)) {
      if (job.volumes.length || job.state !== 'running') mine.delete(job.id);
    }
  }
}

async function modelReady() {
  if (about.ready) return;
  const load = state.queue.find((job) => job.kind === 'load');
  if (load?.state === 'failed') {
    byId('model').textContent = `The model cannot be loaded: ${load.message}`;
    return;
  }
  const now = await get('/api/about');
  if (!now.ready || about.ready) return;
  Object.assign(about, now);
  describeModel();
}

function describeModel() {
  form.fillModel(about);
  const name = about.checkpoint.split('/').filter(Boolean).slice(-2).join('/');
  const size = `${about.side} × ${about.side} pixels of ${about.spacing[1].toFixed(1)} mm, slices ${about.spacing[0].toFixed(1)} mm apart`;
  byId('model').textContent = `${name} (${about.fingerprint}) on ${about.device}: ${size}`;
  byId('generate').disabled = false;
}

byId('form').addEventListener('submit', (/** @type {Event} */ event) => {
  event.preventDefault();
  attempt(() => ask('/api/jobs', form.ask()));
});
byId('open-file').addEventListener('change', () => attempt(async () => {
  const [file] = byId('open-file').files;
  byId('open-file').value = '';
  if (!file) return;
  byId('open-progress').hidden = false;
  byId('open-progress').textContent = `Sending ${file.name} …`;
  try {
    const answer = await call(`/api/open?name=${encodeURIComponent(file.name)}`, { method: 'POST', body: file });
    mine.add((await answer.json()).id);
  } finally {
    byId('open-progress').hidden = true;
  }
}));
byId('windows').addEventListener('click', (/** @type {any} */ event) => event.target.dataset.window && chooseWindow(event.target.dataset.window));
byId('layouts').addEventListener('click', (/** @type {any} */ event) => event.target.dataset.layout && chooseLayout(event.target.dataset.layout));
byId('ruler').addEventListener('click', toggleRuler);
byId('reset').addEventListener('click', reset);
byId('keys-button').addEventListener('click', toggleKeys);

form.fill(about);
if (about.ready) describeModel();
const events = new EventSource('/api/events');
let listed = '';
events.onmessage = (event) => {
  state = JSON.parse(event.data);
  renderProgress();
  const now = JSON.stringify(state.volumes);
  if (now !== listed) renderLibrary();
  listed = now;
  watchJobs();
  attemptQuietly(follow);
  attemptQuietly(modelReady);
};
events.onerror = () => {
  byId('model').textContent = 'The server does not answer; the page goes on as soon as it does.';
};
events.onopen = () => about.ready && describeModel();

/** @param {() => Promise<void>} act whose failure is the viewer's, not the user's */
function attemptQuietly(act) {
  act().catch((error) => form.problem(error.message));
}
