/** One volume on the screen by NiiVue: three planes on one canvas, the solid on another, both fed as slices arrive. */
import { make, voxels } from './api.js';

const niivue = /** @type {any} */ (window).niivue;
const AIR = -1000;
const HEADER_BYTES = 352;
/** The solid is left out above this many voxels: it needs a second copy of them. */
const MOST_SOLID = 1e8;
const SOLIDS = { lung: 'chest', soft: 'ct_surface', bone: 'ct_bones' };
const PLANES = { axial: 0, coronal: 1, sagittal: 2 };
/** Places of the planes: left, top, width, height as shares of the canvas. */
const LAYOUTS = {
  all: [['axial', 0, 0, 0.5, 0.5], ['coronal', 0.5, 0, 0.5, 0.5], ['sagittal', 0, 0.5, 0.5, 0.5]],
  pair: [['axial', 0, 0, 1, 0.4], ['coronal', 0, 0.4, 1, 0.3], ['sagittal', 0, 0.7, 1, 0.3]],
};

/** @returns {boolean} whether this browser can draw volumes */
export function canDraw() {
  if (!niivue || new URLSearchParams(location.search).has('flat')) return false;
  return Boolean(document.createElement('canvas').getContext('webgl2'));
}

/**
 * A NIfTI file of air with the affine that stays while the volume grows: centred in the plane, 0 at the lowest slice.
 * @param {number} side @param {number} slices @param {number[]} spacing slices, rows, columns
 * @param {number} value of all voxels
 */
function emptyNifti(side, slices, spacing, value) {
  const buffer = new ArrayBuffer(HEADER_BYTES + 2 * side * side * slices);
  const head = new DataView(buffer);
  const [z, y, x] = spacing;
  head.setInt32(0, 348, true);
  [3, side, side, slices, 1, 1, 1, 1].forEach((n, i) => head.setInt16(40 + 2 * i, n, true));
  head.setInt16(70, 4, true); // int16
  head.setInt16(72, 16, true);
  [1, x, y, z].forEach((n, i) => head.setFloat32(76 + 4 * i, n, true));
  head.setFloat32(108, HEADER_BYTES, true);
  head.setFloat32(112, 1, true);
  head.setUint8(123, 2); // millimetres
  head.setInt16(254, 1, true);
  const middle = (side - 1) / 2;
  [[x, 0, 0, -x * middle], [0, y, 0, -y * middle], [0, 0, z, 0]].forEach((row, i) =>
    row.forEach((n, j) => head.setFloat32(280 + 16 * i + 4 * j, n, true)));
  'n+1'.split('').forEach((letter, i) => head.setUint8(344 + i, letter.charCodeAt(0)));
  new Int16Array(buffer, HEADER_BYTES).fill(value);
  return buffer;
}

/** A volume, or the difference of two, that is looked at. */
export class Panel {
  /**
   * @param {HTMLElement} host
   * @param {{title: string, id: string, minus?: string, pair?: boolean, moved: (panel: Panel, mm: number[], hu: number,
   *   vox: number[]) => void}} options
   */
  constructor(host, options) {
    this.options = options;
    this.side = this.slices = this.done = 0;
    this.windowName = 'lung';
    this.layout = 'all';
    this.closed = this.quiet = this.touched = false;
    this.flat = make('canvas', { tabIndex: 0, role: 'img', 'aria-label': `${options.title}: planes` });
    this.solid = make('canvas', { role: 'img', 'aria-label': `${options.title}: three dimensions` });
    this.stage = make('div', { className: options.pair ? 'stage pair' : 'stage' },
      make('div', { className: 'flat' }, this.flat), make('div', { className: 'solid' }, this.solid));
    this.node = make('section', { className: 'panel', 'aria-label': options.title },
      make('h2', {}, options.title), this.stage);
    host.append(this.node);
    /** What is done with the canvases, one thing after the other. */
    this.loading = this.open();
  }

  /** Set both canvases up. */
  async open() {
    const shared = { logLevel: 'error', dragAndDropEnabled: false, backColor: [0.02, 0.035, 0.043, 1], loadingText: '' };
    this.planes = new niivue.Niivue({
      ...shared, isRadiologicalConvention: true, sagittalNoseLeft: true, crosshairWidth: 1, crosshairWidthUnit: 'mm',
      crosshairColor: [0.37, 0.83, 0.77, 0.55], fontColor: [0.75, 0.85, 0.87, 1], dragMode: niivue.DRAG_MODE.pan,
      measureLineColor: [0.95, 0.75, 0.47, 1], measureTextColor: [0.95, 0.75, 0.47, 1], isCornerOrientationText: false,
      multiplanarShowRender: niivue.SHOW_RENDER.NEVER,
    });
    await this.planes.attachToCanvas(this.flat, false);
    this.planes.addColormap('difference', DIFFERENCE);
    this.planes.onLocationChange = (/** @type {any} */ at) => {
      if (this.quiet || !at.values.length) return;
      this.touched ||= !this.telling;
      this.options.moved(this, [...at.mm].slice(0, 3), at.values[0].value, [...at.vox]);
    };
    this.flat.addEventListener('wheel', (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      this.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    }, { capture: true, passive: false });
    if (!this.options.pair) {
      this.body = new niivue.Niivue({ ...shared, show3Dcrosshair: false, isOrientCube: false, isOrientationTextVisible: false });
      await this.body.attachToCanvas(this.solid, false);
      this.body.addColormap('chest', CHEST);
      this.body.setSliceType(niivue.SLICE_TYPE.RENDER);
      this.body.setRenderAzimuthElevation(200, 12);
    }
  }

  /**
   * Fetch what is new of the volume; called again as it grows.
   * @param {any} entry its summary @param {{centre: number, width: number}} window
   */
  sync(entry, window) {
    this.window = window;
    this.loading = this.loading.then(() => this.fill(entry)).catch((error) => {
      if (!this.closed) throw error;
    });
    return this.loading;
  }

  /** @param {any} entry */
  async fill(entry) {
    const wanted = entry.state === 'growing' ? Math.max(entry.expected, entry.done) : entry.done;
    if (this.closed || !wanted || entry.done < this.done) return;
    if (wanted !== this.slices) await this.allocate(entry, wanted);
    const plane = this.side * this.side;
    const before = this.done;
    while (this.done < entry.done && !this.closed) {
      const part = await voxels(this.options.id, this.done, entry.done - this.done, this.options.minus);
      if (!part.length) break;
      for (const image of this.images) image.img.set(part, this.done * plane);
      this.done += part.length / plane;
      this.draw();
    }
    // Until the user looks elsewhere, the crosshair stays in the middle of what is there.
    if (this.done !== before && !this.touched) this.centre(this.done / 2);
  }

  /** @param {any} entry @param {number} slices */
  async allocate(entry, slices) {
    const at = this.done ? this.position() : null;
    const old = this.images?.[0]?.img;
    this.side = entry.side;
    this.slices = slices;
    this.spacing = entry.spacing;
    this.images = [];
    const makers = [[this.planes, this.options.minus ? 'difference' : 'gray']];
    if (this.body && this.side * this.side * slices < MOST_SOLID) makers.push([this.body, this.solidColours()]);
    for (const [nv, colours] of makers) {
      const [low, high] = this.range(nv);
      const image = await niivue.NVImage.new(emptyNifti(this.side, slices, entry.spacing, this.options.minus ? 0 : AIR),
        `${this.options.id}.nii`, 'gray', 1, null, low, high, true);
      if (this.closed) return;
      if (old) image.img.set(old.subarray(0, image.img.length));
      while (nv.volumes.length) nv.removeVolume(nv.volumes[0]);
      image.colormap = colours;
      nv.addVolume(image);
      this.images.push(image);
    }
    this.arrange(this.layout);
    this.showParts(entry);
    if (at) this.moveTo(at);
  }

  solidColours() {
    return /** @type {any} */ (SOLIDS)[this.windowName] ?? 'chest';
  }

  /** Grey values that are black and white, or the range that the solid's colours are made for. @param {any} nv */
  range(nv) {
    if (nv === this.body) {
      const map = nv.colormapFromKey(this.solidColours());
      return [map.min, map.max];
    }
    const { centre, width } = this.window ?? { centre: -600, width: 1500 };
    return [centre - width / 2, centre + width / 2];
  }

  /** @param {string} name @param {{centre: number, width: number}} window */
  setWindow(name, window) {
    this.windowName = name;
    this.window = window;
    for (const nv of [this.planes, this.body]) {
      const image = nv?.volumes[0];
      if (!image) continue;
      if (nv === this.body) image.colormap = this.solidColours();
      [image.cal_min, image.cal_max] = this.range(nv);
      nv.updateGLVolume();
    }
  }

  draw() {
    this.planes.updateGLVolume();
    this.body?.updateGLVolume();
  }

  /** @param {string} layout `all`, a plane, or `render` */
  arrange(layout) {
    this.layout = layout;
    this.stage.dataset.layout = layout;
    if (!this.planes?.volumes.length) return;
    const chosen = layout === 'all' || layout === 'render' ? LAYOUTS[this.options.pair ? 'pair' : 'all'] : null;
    if (chosen) {
      this.planes.setCustomLayout(chosen.map(([plane, ...position]) =>
        ({ sliceType: /** @type {any} */ (PLANES)[plane], position })));
    } else {
      this.planes.clearCustomLayout();
      this.planes.setSliceType(/** @type {any} */ (PLANES)[layout]);
    }
    requestAnimationFrame(() => {
      if (this.closed) return;
      this.planes.resizeListener();
      this.body?.resizeListener();
    });
  }

  /** Which slices were kept and which were written, as a bar beside the image. @param {any} entry */
  showParts(entry) {
    this.stage.querySelectorAll('.parts, .legend').forEach((node) => node.remove());
    if (!entry.kept || this.options.minus) return;
    const share = (100 * entry.kept) / this.slices;
    const kept = make('span', { className: 'kept' });
    const written = make('span', { className: 'written' });
    kept.style.height = `${share}%`;
    written.style.height = `${100 - share}%`;
    this.stage.append(make('div', { className: 'parts', 'aria-hidden': 'true' }, kept, written),
      make('p', { className: 'legend' }, make('span', { className: 'kept' }, `0–${entry.kept - 1} kept`), ', ',
        make('span', { className: 'written' }, `from ${entry.kept} written`)));
  }

  /** @param {number} slice where the crosshair goes, in the middle of the plane */
  centre(slice) {
    this.moveTo([0, 0, slice * this.spacing[0]]);
    this.tell();
  }

  position() {
    return [...this.planes.frac2mm(this.planes.scene.crosshairPos)].slice(0, 3);
  }

  /** @param {number[]} mm */
  moveTo(mm) {
    if (!this.planes?.volumes.length) return;
    this.quiet = true;
    this.planes.scene.crosshairPos = this.planes.mm2frac(mm);
    this.planes.drawScene();
    this.quiet = false;
  }

  /** Say what is under the crosshair. */
  tell() {
    this.telling = true;
    this.planes.createOnLocationChange();
    this.telling = false;
  }

  /** @param {number} x voxels to the patient's right @param {number} y to the front @param {number} z up */
  step(x, y, z) {
    if (this.done) this.planes.moveCrosshairInVox(x, y, z);
  }

  /** @param {number} factor */
  zoom(factor) {
    if (!this.done) return;
    const [x, y, z, old] = this.planes.scene.pan2Dxyzmm;
    const now = Math.min(Math.max(old * factor, 0.5), 12);
    this.planes.setPan2Dxyzmm([x, y, z, now]);
  }

  /** @param {boolean} on */
  ruler(on) {
    if (!this.planes) return;
    this.planes.opts.dragModePrimary = on ? niivue.DRAG_MODE.measurement : niivue.DRAG_MODE.crosshair;
    if (!on) this.planes.clearAllMeasurements();
  }

  reset() {
    if (!this.done) return;
    this.planes.setPan2Dxyzmm([0, 0, 0, 1]);
    this.planes.clearAllMeasurements();
    this.body?.setRenderAzimuthElevation(200, 12);
    this.centre(this.done / 2);
  }

  close() {
    this.closed = true;
    for (const nv of [this.planes, this.body]) {
      nv?.gl?.getExtension('WEBGL_lose_context')?.loseContext();
      nv?.cleanup?.();
    }
    this.node.remove();
  }
}

/** Glassy lungs, ivory bones, a breath of skin; air and soft tissue are left out. HU from -1000 to 1000. */
const CHEST = {
  min: -1000, max: 1000,
  R: [0, 30, 50, 90, 120, 120, 235, 245, 255], G: [0, 140, 170, 200, 200, 200, 215, 232, 250],
  B: [0, 150, 170, 195, 200, 200, 185, 215, 240], A: [0, 0, 14, 14, 4, 0, 0, 50, 110],
  I: [0, 5, 14, 36, 60, 80, 155, 175, 255],
};

/** Blue where the second is darker, black where equal, orange where it is brighter. */
const DIFFERENCE = {
  R: [70, 30, 8, 150, 255], G: [190, 80, 12, 70, 205], B: [255, 160, 14, 20, 90], A: [255, 255, 255, 255, 255],
  I: [0, 64, 128, 192, 255],
};
