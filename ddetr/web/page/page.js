// Page of the web demo. Names of images and classes are inserted as text only, never as markup.

const $ = (selector) => document.querySelector(selector);
const items = []; // uploaded images: {id, name, thumbnail, state, answer}
const filter = { threshold: 0.3, topK: null, labels: new Set() };
let detector; // response of /api/detector
let current = null; // the displayed item
let selected = null; // index of a detection of `current`

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error('The server cannot be reached or closed the connection. Is it still running?');
  }
  if (response.ok) return response;
  let sentence = `The server answered ${response.status}.`;
  try {
    sentence = (await response.json()).error;
  } catch {} // not JSON: show only the status
  throw new Error(sentence);
}

function complain(name, error) {
  const close = element('button', { textContent: '✕', ariaLabel: 'Dismiss' });
  const message = element('div', { className: 'message' }, element('span', { textContent: name ? `${name}: ${error.message}` : error.message }), close);
  close.onclick = () => message.remove();
  $('#messages').append(message);
  message.scrollIntoView({ block: 'nearest' });
}

// ---- image input

async function add(name, thumbnail, submit) {
  try {
    const answer = await (await submit()).json();
    const item = { id: answer.id, name: answer.name, thumbnail: thumbnail(), state: 'waiting', answer: null };
    items.unshift(item);
    show(item);
    follow(item);
  } catch (error) {
    complain(name, error);
  }
}

async function addFiles(files) {
  for (const file of files) {
    const name = file.name || 'pasted image';
    if (file.size > detector.upload_bytes) {
      complain(name, new Error(`The file exceeds the limit of ${detector.upload_bytes / 1e6} MB.`));
      continue;
    }
    await add(name, () => URL.createObjectURL(file), () => request(`api/images?name=${encodeURIComponent(name)}`, { method: 'POST', body: file }));
  }
}

async function follow(item) {
  try {
    while (!item.answer) {
      const answer = await (await request(`api/images/${item.id}`)).json();
      if (answer.state === 'failed') throw new Error(answer.error);
      item.state = answer.state === 'waiting' ? `${answer.ahead} ahead` : 'running';
      if (answer.state === 'done') item.answer = answer;
      else await new Promise((resolve) => setTimeout(resolve, 250));
      drawStrip();
      if (item === current) drawStatus();
    }
    if (item === current) show(item);
  } catch (error) {
    complain(item.name, error);
    items.splice(items.indexOf(item), 1);
    if (item === current) show(items.find((other) => other.answer) ?? null);
    else drawStrip();
  }
}

function drawStrip() {
  $('#strip').hidden = items.length < 2;
  $('#strip').replaceChildren(...items.map((item) => {
    const button = element('button', { title: item.name, onclick: () => show(item) }, element('img', { src: item.thumbnail, alt: item.name }));
    button.setAttribute('aria-current', item === current);
    if (!item.answer) button.append(element('span', { textContent: item.state }));
    return button;
  }));
}

// ---- the current image

function show(item) {
  current = item;
  select(null);
  drawStrip();
  $('#result').hidden = item === null;
  if (item === null) return;
  for (const part of ['#side', '#below', '#frame']) $(part).hidden = !item.answer;
  drawStatus();
  if (!item.answer) return;
  $('#picture').removeAttribute('src');
  update();
}

function drawStatus() {
  $('#status').textContent = current.answer ? '' : current.state === 'running' ? `Running detection on ${current.name} …` : `${current.name} is queued: ${current.state}.`;
}

function visible() {
  const threshold = Math.fround(filter.threshold); // scores are float32
  const kept = current.answer.detections
    .map((detection, index) => ({ ...detection, index }))
    .filter((detection) => detection.score >= threshold && filter.labels.has(detection.label));
  return kept.slice(0, filter.topK ?? kept.length);
}

function query() {
  const values = new URLSearchParams({ score_thr: filter.threshold });
  if (filter.topK !== null) values.set('top_k', filter.topK);
  if (filter.labels.size < detector.classes.length) values.set('labels', [...filter.labels].join());
  return values;
}

function update() {
  drawTable();
  drawChips();
  const values = query();
  $('#save-json').href = `api/images/${current.id}/detections.json?${values}`;
  $('#save-picture').href = `api/images/${current.id}/picture?download&${values}`;
  drawPicture(values);
}

let drawing = null; // pending request
async function drawPicture(values) {
  drawing?.abort();
  const mine = (drawing = new AbortController());
  const item = current;
  $('#picture').classList.add('stale');
  await new Promise((resolve) => setTimeout(resolve, 60)); // while the slider moves
  if (mine.signal.aborted) return;
  const width = Math.min(1600, Math.round(Math.max(320, $('#stage').clientWidth) * devicePixelRatio));
  try {
    const response = await request(`api/images/${item.id}/picture?width=${width}&${values}`, { signal: mine.signal });
    const blob = await response.blob();
    if (mine.signal.aborted) return;
    URL.revokeObjectURL($('#picture').src);
    $('#picture').src = URL.createObjectURL(blob);
    await $('#picture').decode();
    $('#picture').alt = `${item.name} with ${visible().length} detections`;
    $('#picture').classList.remove('stale');
    drawSeconds(Number(/dur=([\d.]+)/.exec(response.headers.get('server-timing'))?.[1]) / 1000);
    mark(selected);
  } catch (error) {
    if (!mine.signal.aborted) complain(item.name, error);
  }
}

function drawSeconds(draw) {
  const seconds = current.answer.seconds;
  const texts = { Preprocess: seconds.preprocess, Inference: seconds.inference, Postprocess: seconds.postprocess, Drawing: draw, Queue: seconds.waited };
  const inUnits = (value) => (value >= 1 ? `${value.toFixed(2)} s` : `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms`);
  $('#seconds').replaceChildren(...Object.entries(texts).map(([what, value]) => element('span', { textContent: `${what} ${inUnits(value)}` })));
}

function named(label) {
  const dot = element('i');
  dot.style.background = `rgb(${detector.colors[label].join()})`;
  return [dot, element('span', { textContent: detector.classes[label] })];
}

const boxText = (box) => box.map((value) => value.toFixed(0)).join(' ');

function drawTable() {
  const rows = visible();
  $('#count').textContent = `${rows.length} of ${current.answer.detections.length} detections`;
  $('#table').hidden = rows.length === 0;
  $('#table tbody').replaceChildren(...rows.map((row) => {
    const cells = [named(row.label), [row.score.toFixed(2)], [boxText(row.bbox)]];
    const line = element('tr', { tabIndex: 0 }, ...cells.map((content) => element('td', {}, ...content)));
    line.dataset.index = row.index;
    line.setAttribute('aria-selected', row.index === selected);
    line.onclick = () => select(row.index);
    line.onkeydown = (event) => (event.key === 'Enter' || event.key === ' ') && (event.preventDefault(), select(row.index));
    line.onmouseenter = () => mark(row.index);
    line.onmouseleave = () => mark(selected);
    return line;
  }));
}

function drawChips() {
  const counts = detector.classes.map(() => 0);
  for (const detection of current.answer.detections) if (detection.score >= Math.fround(filter.threshold)) counts[detection.label] += 1;
  $('#classes .chips').querySelectorAll('b').forEach((count, label) => (count.textContent = counts[label]));
}

// ---- one detection

function mark(index) {
  $('#mark').hidden = index === null;
  if (index === null) return;
  const [x1, y1, x2, y2] = current.answer.detections[index].bbox;
  const { width, height } = current.answer;
  Object.assign($('#mark').style, {
    left: `${(100 * x1) / width}%`, top: `${(100 * y1) / height}%`, width: `${(100 * (x2 - x1)) / width}%`, height: `${(100 * (y2 - y1)) / height}%`,
  });
}

function pick(event) {
  if (!current?.answer) return;
  const frame = $('#picture').getBoundingClientRect();
  const scale = current.answer.width / frame.width;
  const x = (event.clientX - frame.left) * scale;
  const y = (event.clientY - frame.top) * scale;
  const slop = 4 * scale;
  const hit = visible().filter(({ bbox: [x1, y1, x2, y2] }) => x >= x1 - slop && x <= x2 + slop && y >= y1 - slop && y <= y2 + slop);
  const area = ({ bbox: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  select(hit.length ? hit.reduce((best, other) => (area(other) < area(best) ? other : best)).index : null);
}

function select(index) {
  selected = index;
  $('#look').hidden = index === null;
  for (const line of document.querySelectorAll('#table tbody tr')) line.setAttribute('aria-selected', Number(line.dataset.index) === index);
  if (current?.answer) mark(index);
  if (index === null) return;
  document.querySelector('#table tr[aria-selected=true]')?.scrollIntoView({ block: 'nearest' });
  const detection = current.answer.detections[index];
  $('#look-title').textContent = `${detection.class} ${(100 * detection.score).toFixed(0)}%`;
  offerLayers();
  drawPoints();
  drawRefinement();
}

function offerLayers() {
  const layers = current.answer.layers;
  const byLayer = $('#split').value === 'layers';
  const options = Array.from({ length: layers }, (_, i) => new Option(i + 1, i + 1));
  if (byLayer) options.unshift(new Option('all', ''));
  const before = $('#layer').dataset.chosen;
  $('#layer').replaceChildren(...options);
  const narrow = innerWidth < 700; // several panels in a row would be too small
  $('#layer').value = options.some((option) => option.value === before) ? before : byLayer && !narrow ? '' : layers;
}

let looking = null;
async function drawPoints() {
  looking?.abort();
  const mine = (looking = new AbortController());
  const item = current;
  const values = new URLSearchParams({ split: $('#split').value });
  if ($('#layer').value) values.set('layer', $('#layer').value);
  if ($('#zoom').checked) values.set('zoom', '');
  $('#look-controls').querySelectorAll('label').forEach((label) => (label.hidden = !item.answer.layers));
  $('#look-note').hidden = !item.answer.layers;
  $('#points').classList.add('stale');
  $('#look-message').textContent = 'Drawing …';
  try {
    const response = await request(`api/images/${item.id}/points/${selected}?${values}`, { signal: mine.signal });
    const blob = await response.blob();
    if (mine.signal.aborted) return;
    URL.revokeObjectURL($('#points').src);
    $('#points').src = URL.createObjectURL(blob);
    await $('#points').decode();
    $('#points').alt = `Sampling points of ${$('#look-title').textContent}`;
    $('#points').hidden = false;
    $('#points').classList.remove('stale');
    $('#look-message').textContent = '';
  } catch (error) {
    if (mine.signal.aborted) return;
    $('#points').hidden = true;
    $('#look-message').textContent = error.message;
  }
}

async function drawRefinement() {
  const [item, index] = [current, selected];
  $('#refinement').hidden = true;
  try {
    const layers = await (await request(`api/images/${item.id}/refinement/${index}`)).json();
    if (item !== current || index !== selected || !layers.length) return;
    $('#refinement tbody').replaceChildren(...layers.map((layer, i) =>
      element('tr', {}, ...[i + 1, layer.bbox.map((value) => value.toFixed(1)).join('  '), layer.iou.toFixed(3)].map((text) => element('td', { textContent: text })))));
    $('#refinement').hidden = false;
  } catch (error) {
    complain(item.name, error);
  }
}

// ---- webcam

async function openCamera() {
  try {
    if (!navigator.mediaDevices) throw new Error('Browsers allow webcam access only on localhost or over HTTPS.');
    $('#shoot').disabled = true; // until the video is playing
    $('#camera video').onplaying = () => ($('#shoot').disabled = false);
    $('#camera video').srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    $('#camera').showModal();
  } catch (error) {
    complain('Webcam', error);
  }
}

function closeCamera() {
  for (const track of $('#camera video').srcObject?.getTracks() ?? []) track.stop();
  $('#camera video').srcObject = null;
}

function shoot() {
  const video = $('#camera video');
  const canvas = element('canvas', { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext('2d').drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && addFiles([new File([blob], 'webcam.jpg', { type: 'image/jpeg' })]), 'image/jpeg', 0.95);
  $('#camera').close();
}

// ---- start

function connectInputs() {
  $('#choose').onclick = () => $('#files').click();
  $('#files').onchange = () => addFiles([...$('#files').files]).then(() => ($('#files').value = ''));
  const drop = $('#drop');
  document.addEventListener('dragover', (event) => (event.preventDefault(), drop.classList.add('over')));
  document.addEventListener('dragleave', (event) => event.relatedTarget === null && drop.classList.remove('over'));
  document.addEventListener('drop', (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    addFiles([...event.dataTransfer.files]);
  });
  document.addEventListener('paste', (event) => addFiles([...event.clipboardData.files]));
  $('#webcam').onclick = openCamera;
  $('#shoot').onclick = shoot;
  $('#close-camera').onclick = () => $('#camera').close();
  $('#camera').onclose = closeCamera;
  $('#examples').hidden = detector.examples.length === 0;
  $('#examples .thumbs').append(...detector.examples.map((name, i) => {
    const image = element('img', { src: `api/examples/${i}`, alt: name, loading: 'lazy' });
    const submit = () => add(name, () => `api/examples/${i}`, () => request(`api/examples/${i}`, { method: 'POST' }));
    return element('button', { title: name, onclick: submit }, image);
  }));
}

function connectControls() {
  filter.threshold = detector.score_thr;
  $('#threshold').value = filter.threshold;
  $('#threshold-value').textContent = filter.threshold.toFixed(2);
  $('#threshold').oninput = () => {
    filter.threshold = Number($('#threshold').value);
    $('#threshold-value').textContent = filter.threshold.toFixed(2);
    update();
  };
  $('#top-k').oninput = () => {
    const number = Math.floor(Number($('#top-k').value));
    filter.topK = number >= 1 ? Math.min(number, 1e6) : null;
    update();
  };
  filter.labels = new Set(detector.classes.keys());
  $('#classes .chips').append(...detector.classes.map((_, label) => {
    const box = element('input', { type: 'checkbox', checked: true });
    box.onchange = () => (filter.labels[box.checked ? 'add' : 'delete'](label), update());
    return element('label', {}, box, ...named(label), element('b'));
  }));
  for (const [id, checked] of [['#all-classes', true], ['#no-classes', false]]) {
    $(id).onclick = () => {
      $('#classes .chips').querySelectorAll('input').forEach((box) => (box.checked = checked));
      filter.labels = new Set(checked ? detector.classes.keys() : []);
      update();
    };
  }
  $('#picture').onclick = pick;
  $('#close-look').onclick = () => select(null);
  $('#split').onchange = () => (offerLayers(), drawPoints());
  $('#layer').onchange = () => (($('#layer').dataset.chosen = $('#layer').value), drawPoints());
  $('#zoom').onchange = drawPoints;
}

try {
  detector = await (await request('api/detector')).json();
  const { detector: kind, checkpoint, parameters, device, classes, upload_bytes: bytes, pixels } = detector;
  document.title = `${kind} · ddetr demo`;
  const facts = [kind, checkpoint, `${(parameters / 1e6).toFixed(1)} M parameters`, `${classes.length} classes`, device];
  $('#facts').append(...facts.map((text) => element('span', { textContent: text })));
  $('#hint').textContent = `Drop images here, or paste one. Up to ${bytes / 1e6} MB and ${pixels / 1e6} megapixels each.`;
  connectInputs();
  connectControls();
} catch (error) {
  complain('', error);
}
