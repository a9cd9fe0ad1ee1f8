// Every action of the page is told to the server by one event; the answer comes back as new HTML.
const root = document;
const pending = [];
let waiting = 0;

function send(action) {
  const last = pending[pending.length - 1];
  const again = last && 'factor' in action && last.kind === action.kind && last.latent === action.latent;
  if (again) pending.pop();
  pending.push(action);
  if (!waiting) next();
}
function next() {
  clearTimeout(waiting);
  waiting = 0;
  root.body.classList.toggle('busy', pending.length > 0);
  if (!pending.length) return;
  waiting = setTimeout(next, 60000);  // an answer that never comes must not stop the page
  trigger('act', pending.shift());
}
watch('value', () => {
  const reply = JSON.parse(props.value || '{}');
  if (reply.query !== undefined) {
    const theme = new URLSearchParams(location.search).get('__theme');
    const parts = [reply.query, theme ? '__theme=' + theme : ''].filter(Boolean);
    history.replaceState(null, '', location.pathname + (parts.length ? '?' + parts.join('&') : ''));
  }
  next();
});

function isSlider(at) { return at.dataset?.act === 'factor' || at.dataset?.act === 'add'; }
function latentOf(target) { return Number(target.closest('[data-latent]').dataset.latent); }
function read(file, most) {
  if (!file) return;
  if (file.size > most) { send({kind: 'too_large'}); return; }
  const reader = new FileReader();
  reader.onload = () => send({kind: 'upload', content: reader.result.slice(reader.result.indexOf(',') + 1)});
  reader.readAsDataURL(file);
}
function most() { return Number(root.querySelector('[data-act=file]').dataset.most); }

const clicks = {
  open: (at) => send({kind: 'open', index: Number(at.dataset.index)}),
  shelf: (at) => send({kind: 'shelf', start: Number(at.dataset.start)}),
  color: (at) => send({kind: 'color', latent: latentOf(at)}),
  references: (at) => send({kind: 'references', latent: latentOf(at)}),
  remove: (at) => send({kind: 'factor', latent: latentOf(at), factor: Number(at.dataset.factor), list: true}),
  put: (at) => send({kind: 'add', latent: latentOf(at), factor: Number(at.dataset.factor), list: true}),
  rank: (at) => send({kind: 'rank', ranking: at.dataset.rank}),
  whole: () => send({kind: 'whole'}),
  undo: () => send({kind: 'undo'}),
  link: (at) => {
    navigator.clipboard?.writeText(location.href);
    at.textContent = 'Copied';
    setTimeout(() => { at.textContent = 'Copy link'; }, 1500);
  },
  patch: (at, event) => {
    const box = at.getBoundingClientRect();
    const place = (offset, size, n) => Math.min(n - 1, Math.max(0, Math.floor(offset / size * n)));
    send({
      kind: 'patch',
      row: place(event.clientY - box.top, box.height, Number(at.dataset.rows)),
      column: place(event.clientX - box.left, box.width, Number(at.dataset.columns)),
    });
  },
};
root.addEventListener('click', (event) => {
  const at = event.target.closest?.('.explore-page [data-act]');
  if (at && clicks[at.dataset.act]) clicks[at.dataset.act](at, event);
});
root.addEventListener('input', (event) => {
  const at = event.target;
  if (!isSlider(at)) return;
  at.closest('.change').querySelector('output').textContent = at.dataset.sign + Number(at.value);
  send({kind: at.dataset.act, latent: latentOf(at), factor: Number(at.value), list: false});
});
root.addEventListener('change', (event) => {
  const at = event.target;
  if (at.dataset?.act === 'file') { read(at.files[0], most()); at.value = ''; }
  if (isSlider(at)) {
    at.setAttribute('value', at.value);  // what the next answer is compared with
    send({kind: at.dataset.act, latent: latentOf(at), factor: Number(at.value), list: true});
  }
  if (at.dataset?.act === 'find' && at.value.trim()) { send({kind: 'find', words: at.value.trim()}); at.value = ''; }
});
const steps = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
root.addEventListener('keydown', (event) => {
  const at = event.target.closest?.('.photo[data-act]'), step = steps[event.key];
  if (!at || !step) return;
  event.preventDefault();
  send({kind: 'step', rows: step[0], columns: step[1]});
});
root.addEventListener('dragover', (event) => { event.preventDefault(); root.body.classList.add('dropping'); });
root.addEventListener('dragleave', (event) => { if (!event.relatedTarget) root.body.classList.remove('dropping'); });
root.addEventListener('drop', (event) => {
  event.preventDefault();
  root.body.classList.remove('dropping');
  read(event.dataTransfer.files[0], most());
});
