/** What stands beside a volume: report, findings, score, seams, provenance, downloads. */
import { make, whole } from './api.js';

const NAMES = { nifti: 'NIfTI', dicom: 'DICOM (zip)', mha: 'MHA', json: 'JSON', png: 'Montage (PNG)' };
/** A mark, so that colour alone says nothing, and a tone. */
const TONES = {
  found: ['✓', 'good'], 'absent, as asked': ['✓', 'good'], missing: ['✗', 'bad'], 'found against it': ['✗', 'bad'],
  'not asked': ['+', 'warn'], 'not measured': ['·', ''],
};
const SVG = 'http://www.w3.org/2000/svg';

/**
 * @param {any} entry all that is known of the volume
 * @param {string[]} formats that it can be downloaded in
 * @param {Node[]} actions buttons
 * @returns {Node[]}
 */
export function describe(entry, formats, actions) {
  const facts = entry.facts;
  const size = `${entry.done} slices of ${entry.side} × ${entry.side}, ` +
    `${entry.spacing.map((/** @type {number} */ mm) => Number(mm.toFixed(2))).join(' × ')} mm`;
  const what = make('section', { 'aria-label': `Volume of ${entry.id}: ${entry.title}` }, make('h2', {}, heading(entry)),
    make('p', { className: 'small' }, size), ...(entry.message ? [make('p', { className: 'small' }, entry.message)] : []));
  if (entry.report) what.append(make('h3', {}, 'Report'), make('blockquote', { tabIndex: 0 }, entry.report));
  if (actions.length) what.append(make('h3', {}, 'Go on'), make('div', { className: 'actions' }, ...actions));
  if (entry.done && entry.state !== 'growing') what.append(make('h3', {}, 'Download'), downloads(entry, formats));
  const sections = [what];
  if (facts.findings) sections.push(findings(entry));
  if (facts.seams) sections.push(seams(facts.seams, entry));
  if (Object.keys(entry.record).length) sections.push(provenance(entry));
  return sections;
}

/** @param {any} entry */
function heading(entry) {
  const kinds = { generated: 'Generated', opened: 'Opened', reconstruction: 'Reconstruction', continued: 'Continued' };
  const seed = entry.seed === null ? '' : `, seed ${entry.seed}`;
  return `${/** @type {any} */ (kinds)[entry.kind]}${seed}`;
}

/** @param {any} entry @param {string[]} formats */
function downloads(entry, formats) {
  return make('div', { className: 'downloads' }, ...formats.map((format) => make('a', {
    className: 'button', href: `/api/volumes/${entry.id}/download/${format}`, download: '',
  }, /** @type {any} */ (NAMES)[format] ?? format)));
}

/** @param {any} entry */
function findings(entry) {
  const { findings: found, score } = entry.facts;
  const section = make('section', { 'aria-label': `Findings of ${entry.id}: ${entry.title}` }, make('h2', {}, 'Asked and found'));
  if (found.error) {
    section.append(make('p', { className: 'small' }, `Not measured: ${found.error}`));
    return section;
  }
  if (found.verdicts.length) {
    const body = make('tbody');
    const order = (/** @type {any} */ line) => (line.asked.startsWith('no ') || line.verdict === 'not measured' ? 1 : 0);
    for (const line of [...found.verdicts].sort((a, b) => order(a) - order(b))) {
      const [mark, tone] = /** @type {any} */ (TONES)[line.verdict];
      const words = make('td', {}, line.asked || line.found);
      if (line.asked && line.found) words.append(make('div', { className: 'small' }, `measured: ${line.found}`));
      body.append(make('tr', {}, words, make('td', { className: `verdict ${tone}` }, `${mark} ${line.verdict}`)));
    }
    section.append(make('table', {}, make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, 'Report, and what is measured'),
      make('th', { scope: 'col' }, 'Verdict'))), body));
  } else {
    section.append(make('p', { className: 'small' }, 'Nothing is measured that counts as a finding.'));
  }
  const measures = make('dl', { className: 'measures' });
  const add = (/** @type {string} */ name, /** @type {string} */ value) =>
    measures.append(make('dt', {}, name), make('dd', {}, value));
  add('Lung, right / left', `${whole(found.lung_ml.right)} / ${whole(found.lung_ml.left)} ml`);
  add('Pleural fluid, right / left', `${whole(found.effusion_ml.right)} / ${whole(found.effusion_ml.left)} ml`);
  if (found.cardiothoracic_ratio) add('Cardiothoracic ratio', found.cardiothoracic_ratio.toFixed(2));
  if (score) add(score.name === 'clip' ? 'CT-CLIP score' : 'CT-CLIP score (pair trained on phantoms)', score.score.toFixed(1));
  section.append(make('h3', {}, 'Measures'), measures);
  return section;
}

/** @param {any} seams @param {any} entry */
function seams(seams, entry) {
  const title = seams.seam_ratio === null ? 'Steps between slices' : `Seams: ${seams.seam_ratio.toFixed(2)}`;
  const told = seams.boundaries.length
    ? 'Each step between slices over the steps beside it; dashed: where blocks meet. 1 is no seam.'
    : 'Each step between slices over the steps beside it.';
  const kept = entry.kept ? ` Slices 0–${entry.kept - 1} are kept.` : '';
  return make('section', { 'aria-label': `Seams of ${entry.id}: ${entry.title}` }, make('h2', {}, title), plot(seams, title),
    make('p', { className: 'small' }, told + kept));
}

/** @param {any} seams @param {string} title */
function plot(seams, title) {
  const [width, height, left, low] = [300, 110, 26, 92];
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, class: 'plot', role: 'img', 'aria-label': title });
  const values = seams.ratios.map((/** @type {number | null} */ r) => r);
  const known = values.filter((/** @type {number | null} */ r) => r !== null);
  const top = Math.max(2, ...known);
  const x = (/** @type {number} */ k) => left + ((width - left - 4) * k) / Math.max(values.length - 1, 1);
  const y = (/** @type {number} */ r) => low - ((low - 8) * Math.min(r, top)) / top;
  for (const mark of [1, Math.floor(top)]) {
    svg.append(shape('line', { class: 'axis', x1: left, x2: width - 4, y1: y(mark), y2: y(mark) }),
      shape('text', { x: 4, y: y(mark) + 3 }, `${mark}`));
  }
  for (const k of seams.boundaries) svg.append(shape('line', { class: 'seam', x1: x(k), x2: x(k), y1: 6, y2: low }));
  let path = '';
  values.forEach((/** @type {number | null} */ r, /** @type {number} */ k) => {
    if (r !== null) path += `${path && values[k - 1] !== null ? 'L' : 'M'}${x(k).toFixed(1)} ${y(r).toFixed(1)}`;
  });
  svg.append(shape('path', { class: 'line', d: path }), shape('text', { x: left, y: height - 4 }, 'lowest slice'),
    shape('text', { x: width - 4, y: height - 4, 'text-anchor': 'end' }, 'highest'));
  return svg;
}

/** @param {string} tag @param {Record<string, any>} attributes @param {string} [text] */
function shape(tag, attributes, text = '') {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, `${value}`);
  node.textContent = text;
  return node;
}

/** @param {any} entry */
function provenance(entry) {
  const details = make('details', {}, make('summary', {}, 'Provenance'),
    make('pre', { tabIndex: 0 }, JSON.stringify(entry.record, null, 1)));
  return make('section', { 'aria-label': `Provenance of ${entry.id}: ${entry.title}` }, details);
}
