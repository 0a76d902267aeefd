/** One volume on the screen as pictures from the server, for browsers without WebGL2. */
import { make } from './api.js';

const PLANES = ['axial', 'coronal', 'sagittal'];

/** The same to the page as `Panel` of viewer.js. */
export class FlatPanel {
  /** @param {HTMLElement} host @param {any} options as for `Panel` */
  constructor(host, options) {
    this.options = options;
    this.windowName = 'lung';
    this.done = 0;
    this.loading = Promise.resolve();
    this.index = /** @type {Record<string, number>} */ ({});
    this.pictures = make('div', { className: 'pictures' });
    this.parts = /** @type {Record<string, any>} */ ({});
    for (const plane of PLANES) {
      const image = make('img', { alt: '' });
      const slider = make('input', { type: 'range', min: 0, max: 0, 'aria-label': `${options.title}: ${plane} slice` });
      const caption = make('figcaption', {}, plane);
      slider.addEventListener('input', () => {
        this.index[plane] = Number(slider.value);
        this.draw(plane);
        options.moved(this, null, null, this.index);
      });
      this.parts[plane] = { image, slider, caption, figure: make('figure', {}, image, slider, caption) };
      this.pictures.append(this.parts[plane].figure);
    }
    this.node = make('section', { className: 'panel', 'aria-label': options.title }, make('h2', {}, options.title),
      make('div', { className: options.pair ? 'stage pair' : 'stage' }, this.pictures));
    host.append(this.node);
  }

  /** @param {any} entry */
  async sync(entry) {
    this.kept = entry.kept;
    if (entry.done === this.done) return;
    this.done = entry.done;
    this.side = entry.side;
    for (const plane of PLANES) {
      const last = (plane === 'axial' ? this.done : this.side) - 1;
      this.parts[plane].slider.max = `${last}`;
      this.index[plane] = Math.min(this.index[plane] ?? Math.floor(last / 2), last);
      this.parts[plane].slider.value = `${this.index[plane]}`;
      this.draw(plane);
    }
  }

  /** @param {string} plane */
  draw(plane) {
    if (!this.done) return;
    const { id, minus } = this.options;
    const { image, caption } = this.parts[plane];
    const query = new URLSearchParams({
      plane, index: `${this.index[plane]}`, window: minus ? 'difference' : this.windowName, done: `${this.done}`,
      ...(minus && { minus }),
    });
    image.src = `/api/volumes/${id}/slice.png?${query}`;
    image.alt = `${plane} slice ${this.index[plane]}`;
    const part = this.kept && plane === 'axial' ? (this.index[plane] < this.kept ? ', kept' : ', written') : '';
    caption.textContent = `${plane}, slice ${this.index[plane]}${part}`;
  }

  /** @param {string} name */
  setWindow(name) {
    this.windowName = name;
    PLANES.forEach((plane) => this.draw(plane));
  }

  /** @param {string} layout */
  arrange(layout) {
    const one = PLANES.includes(layout);
    this.pictures.classList.toggle('one', one);
    for (const plane of PLANES) this.parts[plane].figure.hidden = one && plane !== layout;
  }

  /** @param {any} index of every plane, from a panel that was moved */
  moveTo(index) {
    for (const plane of PLANES) {
      const last = (plane === 'axial' ? this.done : this.side) - 1;
      const wanted = Math.min(index[plane], last);
      if (wanted === this.index[plane] || last < 0) continue;
      this.index[plane] = wanted;
      this.parts[plane].slider.value = `${wanted}`;
      this.draw(plane);
    }
  }

  /** @param {number} x @param {number} y @param {number} z */
  step(x, y, z) {
    this.moveTo({
      axial: Math.max(this.index.axial + z, 0), coronal: Math.max(this.index.coronal - y, 0),
      sagittal: Math.max(this.index.sagittal + x, 0),
    });
    this.options.moved(this, null, null, this.index);
  }

  reset() {
    this.moveTo({ axial: this.done >> 1, coronal: this.side >> 1, sagittal: this.side >> 1 });
  }

  zoom() {}
  ruler() {}
  close() {
    this.node.remove();
  }
}
