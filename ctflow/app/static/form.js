/** The form: what is asked for. */
import { byId, call, make } from './api.js';

/** @param {string} id @returns {number | null} */
const number = (id) => (byId(id).value === '' ? null : Number(byId(id).value));

/** @type {string} the volume that is continued; empty: none */
let source = '';

/** @param {any} about what the server says of the model */
export function fill(about) {
  for (const [list, text] of [['examples', 'report'], ['examples-b', 'report-b']]) {
    byId(list).append(...about.examples.map((/** @type {any} */ one, /** @type {number} */ i) =>
      make('option', { value: `${i}` }, one.title)));
    byId(list).addEventListener('change', () => {
      const chosen = about.examples[byId(list).value];
      if (chosen) byId(text).value = chosen.report;
    });
  }
  byId('compare').addEventListener('change', () => {
    byId('second').hidden = !byId('compare').checked;
    byId('report-b').required = byId('compare').checked;
  });
  byId('report-file').addEventListener('change', () => readFile(byId('report-file').files[0]));
  byId('continue-off').addEventListener('click', () => startFrom(null));
}

/** @param {any} about once the model is loaded */
export function fillModel(about) {
  byId('steps').placeholder = `${about.steps}`;
  byId('guidance').placeholder = `${about.guidance}`;
  byId('slices').max = `${about.most_slices}`;
  byId('spacing-label').hidden = !about.z_spacing_range;
  if (about.z_spacing_range) {
    const [low, high] = about.z_spacing_range;
    Object.assign(byId('spacing'), { min: low, max: high, placeholder: `${low.toFixed(1)}–${high.toFixed(1)}` });
  }
}

/** @returns {any} what the server is asked for */
export function ask() {
  const reports = [byId('report').value];
  if (byId('compare').checked && !source) reports.push(byId('report-b').value);
  return {
    reports, seed: number('seed') ?? 0, slices: number('slices'), z_spacing: source ? null : number('spacing'),
    steps: number('steps'), guidance: number('guidance'),
    candidates: source || byId('compare').checked ? null : number('candidates'),
    ...(source && { source, keep: [number('keep-first') ?? 0, number('keep-last') ?? 0] }),
  };
}

/** Continue a volume, or begin from nothing. @param {any} entry its summary, or null */
export function startFrom(entry) {
  source = entry?.id ?? '';
  byId('continue-box').hidden = !source;
  byId('compare').disabled = Boolean(source);
  byId('second').hidden = Boolean(source) || !byId('compare').checked;
  byId('report-b').required = !source && byId('compare').checked;
  byId('generate').textContent = source ? 'Write on' : 'Generate';
  if (!entry) return;
  byId('continue-title').textContent = entry.title;
  for (const id of ['keep-first', 'keep-last']) byId(id).max = `${entry.done - 1}`;
  byId('keep-first').value = '0';
  byId('keep-last').value = `${Math.min(Math.max(15, Math.floor(entry.done / 3)), entry.done - 1)}`;
  byId('report').focus();
}

/** @param {string} id */
export function forget(id) {
  if (source === id) startFrom(null);
}

/** @param {string} text the server's words, or nothing */
export function problem(text) {
  byId('problem').textContent = text;
  byId('problem').hidden = !text;
}

/** @param {File | undefined} file a report, or a CSV of reports */
async function readFile(file) {
  if (!file) return;
  problem('');
  try {
    const kind = /\.(csv|tsv)$/i.test(file.name) ? 'csv' : 'text';
    const answer = await (await call(`/api/reports?kind=${kind}`, { method: 'POST', body: file })).json();
    const rows = byId('rows');
    rows.hidden = kind === 'text';
    rows.replaceChildren(make('option', { value: '' }, `${answer.found} rows: choose one`),
      ...answer.rows.map((/** @type {any} */ row, /** @type {number} */ i) =>
        make('option', { value: `${i}` }, `${row.case_id}: ${row.report.slice(0, 60)}`)));
    rows.onchange = () => rows.value && takeRow(answer.rows[rows.value]);
    if (kind === 'text') takeRow(answer.rows[0]);
    if (answer.refused.length) problem(`Refused:\n${answer.refused.join('\n')}`);
  } catch (error) {
    problem(/** @type {Error} */ (error).message);
  } finally {
    byId('report-file').value = '';
  }
}

/** @param {any} row of the CSV */
function takeRow(row) {
  byId('report').value = row.report;
  for (const [id, value] of [['seed', row.seed], ['slices', row.slices], ['spacing', row.z_spacing]]) {
    if (value !== undefined) byId(id).value = value;
  }
}
