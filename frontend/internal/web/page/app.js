// The page of cats-api: one person, one name, one picture. It uses the public API as
// any other client does. What comes from outside becomes text, never markup.

const $ = (id) => document.getElementById(id)

const signInKey = 'cats-sign-in' // in sessionStorage, while the person is away at the issuer
const showAtMost = 64 << 20 // bytes of a picture that is shown without being asked to
const parallelBlocks = 4
const triesOfAPart = 5
const storageVersion = { 'x-ms-version': '2021-12-02' }

let about // the answer to GET /about
let user = ''
let picture // the answer to GET /cat/{user}; undefined where there is none
let ttl // of links, in seconds
let token // {value, user, ends}; only ever here, in memory
let upload // what has been chosen, or is under way
let loading = new AbortController() // of what is shown
let shown = '' // the entity tag of what is shown, if it is from storage
let skew = 0 // of the service's clock against this one, in ms

// Problem is a refusal: the service's own problem document, or one of this page's.
class Problem extends Error {
  constructor(code, { detail = '', retryAfter = 0, requestId = '', outcome = '' } = {}) {
    super(detail || code)
    Object.assign(this, { code, detail, retryAfter, requestId, outcome })
  }
}

// ---- Asking the service

const catPath = (of) => `/cat/${encodeURIComponent(of)}`
const authorization = () => (token ? { Authorization: `Bearer ${token.value}` } : {})

// ask returns the JSON of an answer, undefined where it has none, and throws a Problem.
async function ask(method, path, { query = {}, headers = {}, signal } = {}) {
  const search = new URLSearchParams(query).toString()
  let answer, text
  try {
    answer = await fetch(search ? `${path}?${search}` : path, { method, headers: { ...authorization(), ...headers }, cache: 'no-store', signal })
    text = await answer.text()
  } catch (err) {
    if (signal?.aborted) throw err
    throw new Problem(navigator.onLine ? 'unreachable' : 'offline')
  }
  const now = Date.parse(answer.headers.get('Date'))
  if (now) skew = now - Date.now()
  if (!answer.ok) throw problemOf(answer.status, text, (name) => answer.headers.get(name))
  return text ? jsonOf(text) : undefined
}

function jsonOf(text) {
  try {
    return JSON.parse(text)
  } catch { // such as the sign-in of a Wi-Fi
    throw new Problem('strange')
  }
}

function problemOf(status, text, header) {
  const retryAfter = Number(header('Retry-After')) || 0
  try {
    const { code, detail, request_id: requestId, outcome } = JSON.parse(text)
    if (typeof code === 'string') return new Problem(code, { detail: `The service says: ${detail}.`, retryAfter, requestId, outcome })
  } catch { /* it is no JSON */ }
  // Somebody on the way has answered.
  return new Problem(status === 413 ? 'too_large' : status === 429 ? 'rate_limited' : 'strange', { detail: `The answer has the HTTP status ${status}.`, retryAfter })
}

const unanswered = ['broke_off', 'offline', 'unreachable', 'strange'] // codes of this page: the service has not answered

// change awaits a request that changes the picture. If the service does not answer it, the outcome is unknown.
async function change(request) {
  try {
    return await request
  } catch (err) {
    if (unanswered.includes(err.code)) err.outcome = 'unknown'
    throw err
  }
}

// send sends bytes and tells of each piece that has gone; fetch cannot do that. It
// returns the answer, whatever its status, and throws a Problem where there is none.
function send(method, url, body, { headers = {}, signal, sent = () => {} } = {}) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted()
    const xhr = new XMLHttpRequest()
    const abort = () => xhr.abort()
    xhr.open(method, url)
    for (const [name, value] of Object.entries(headers)) xhr.setRequestHeader(name, value)
    xhr.upload.onprogress = (event) => sent(event.loaded)
    xhr.onload = () => resolve({ status: xhr.status, text: xhr.responseText, header: (name) => xhr.getResponseHeader(name) })
    xhr.onerror = () => reject(new Problem(navigator.onLine ? 'broke_off' : 'offline'))
    xhr.onabort = () => reject(signal.reason)
    xhr.onloadend = () => signal.removeEventListener('abort', abort)
    signal.addEventListener('abort', abort)
    xhr.send(body)
  })
}

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms)
  signal.addEventListener('abort', () => { clearTimeout(timer); reject(signal.reason) }, { once: true })
})

// ---- Uploads

// Upload brings one file to be the picture of a name. After a Problem, run can be
// called again, and sends nothing twice that storage has acknowledged.
class Upload {
  constructor(file) {
    this.file = file
    this.seen = picture?.etag // of what it is to replace
  }

  get conditions() { return this.seen ? { 'If-Match': this.seen } : { 'If-None-Match': '*' } }

  async run(signal, progress) {
    await (this.file.size <= about.max_picture_size ? this.#through(signal, progress) : this.#straight(signal, progress))
  }

  async #through(signal, progress) {
    await change(this.#put(signal, progress))
  }

  async #put(signal, progress) {
    const answer = await send('PUT', catPath(user), this.file, { headers: { ...authorization(), ...this.conditions }, signal, sent: progress })
    if (answer.status !== 200) throw problemOf(answer.status, answer.text, answer.header)
    jsonOf(answer.text)
  }

  async #straight(signal, progress) {
    if (!this.ticket || Date.parse(this.ticket.expires_at) - skew - Date.now() < 60_000) {
      this.ticket = await ask('POST', `${catPath(user)}/upload`, { query: { size: this.file.size }, signal })
      this.blocks = new Set()
      this.whole = false
    }
    if (!this.whole) {
      await (this.ticket.block_size ? this.#inBlocks(signal, progress) : this.#inOne(signal, progress))
      this.whole = true
    }
    progress(this.file.size)
    try {
      await this.#commit(signal)
    } catch (err) {
      if (['no_such_upload', 'incomplete', 'digest_mismatch'].includes(err.code)) this.ticket = undefined
      throw err
    }
  }

  // commit repeats a commit of unknown outcome, which is safe, and one that finds the same under way.
  async #commit(signal) {
    let outcome = '' // of an earlier try
    for (let tries = 1; ; tries++) {
      try {
        return await change(ask('POST', `${catPath(user)}/upload/${this.ticket.id}/commit`, { headers: this.conditions, signal }))
      } catch (err) {
        const again = err.code !== 'offline' && (err.outcome === 'unknown' || err.code === 'overloaded')
        if (err instanceof Problem) outcome = err.outcome ||= outcome
        if (!again || tries === triesOfAPart) throw err
        await pause((err.retryAfter || 1) * 1000, signal)
      }
    }
  }

  async #inOne(signal, progress) {
    const answer = await this.#persist(signal, (again) => send('PUT', this.ticket.upload_url, this.file, {
      headers: { 'x-ms-blob-type': 'BlockBlob', ...storageVersion }, signal, sent: progress,
    }).then((answer) => (again && [403, 409].includes(answer.status) ? { status: 201 } : answer))) // an earlier try got through
    this.#check(answer)
  }

  async #inBlocks(signal, progress) {
    const { block_size: size, upload_url: url } = this.ticket
    const ids = Array.from({ length: Math.ceil(this.file.size / size) }, (_, i) => btoa(String(i).padStart(8, '0')))
    const under = new Map() // bytes of blocks that are on their way
    const tell = () => {
      let sum = 0
      for (const i of this.blocks) sum += this.#block(i, size).size
      for (const n of under.values()) sum += n
      progress(Math.min(sum, this.file.size))
    }
    const failed = new AbortController() // the first failure ends the others
    const both = AbortSignal.any([signal, failed.signal])
    const todo = [...ids.keys()].filter((i) => !this.blocks.has(i))
    const worker = async () => {
      while (todo.length) {
        const i = todo.shift()
        const answer = await this.#persist(both, () => send('PUT', `${url}&comp=block&blockid=${encodeURIComponent(ids[i])}`, this.#block(i, size), {
          headers: storageVersion, signal: both, sent: (n) => { under.set(i, n); tell() },
        }))
        under.delete(i)
        this.#check(answer)
        this.blocks.add(i)
        tell()
      }
    }
    try {
      await Promise.all(Array.from({ length: parallelBlocks }, worker))
    } catch (err) {
      failed.abort(err)
      throw err
    }
    const list = `<?xml version="1.0" encoding="utf-8"?><BlockList>${ids.map((id) => `<Latest>${id}</Latest>`).join('')}</BlockList>`
    this.#check(await this.#persist(signal, () => send('PUT', `${url}&comp=blocklist`, list, { headers: { 'Content-Type': 'application/xml', ...storageVersion }, signal })))
  }

  #block(i, size) { return this.file.slice(i * size, (i + 1) * size) }

  // persist tries again what got no answer, or one that it is too much just now.
  async #persist(signal, once) {
    for (let tries = 1; ; tries++) {
      try {
        const answer = await once(tries > 1)
        if (answer.status < 500 && ![408, 429].includes(answer.status) || tries === triesOfAPart) return answer
      } catch (err) {
        if (err.code !== 'broke_off' || tries === triesOfAPart) throw err // who is offline knows when that is over
      }
      await pause(2 ** (tries - 2) * 1000 * (0.75 + Math.random() / 2), signal)
    }
  }

  // check throws the Problem that an answer of storage is.
  #check({ status }) {
    if (status === 201) return
    if (status === 403 || status === 404) this.ticket = undefined // it has ended
    throw new Problem('storage_refused', { detail: `Storage answered with the HTTP status ${status}.` })
  }
}

// ---- What is to be seen

// show makes view the one that is to be seen: of what says in which views it is.
function show(view) {
  document.body.dataset.view = view
  for (const el of document.querySelectorAll('[data-in]')) el.hidden = !el.dataset.in.split(' ').includes(view)
  for (const el of document.querySelectorAll('[data-write]')) el.hidden = !mayChange()
  $('choose').hidden = view === 'signed-out' || Boolean(token)
  $('sign-in-top').hidden = view === 'signed-out' || Boolean(token) || !about?.sign_in
  $('show').disabled = $('name').disabled = view === 'uploading'
  $('upload').textContent = picture ? 'Upload in its place' : 'Upload'
  $('title').textContent = user && view !== 'signed-out' ? `${user}’s cat` : 'Share a cat'
  document.title = user && view !== 'signed-out' ? `${user} · Cats` : 'Cats'
}

const view = () => document.body.dataset.view
const mayChange = () => !about?.read_access || Boolean(token)

function note(text) { $('note').textContent = text }

// showImage shows url, "" for none, in place of which it says why.
function showImage(url, alt, why = '', askFirst = false) {
  shown = ''
  const image = $('image')
  const before = image.src
  image.hidden = !url
  $('no-image').hidden = Boolean(url)
  $('no-image-text').textContent = why
  $('show-anyway').hidden = !askFirst
  image.alt = alt
  if (url) image.src = url
  else image.removeAttribute('src')
  if (before.startsWith('blob:') && before !== url) URL.revokeObjectURL(before)
}

$('image').addEventListener('error', () => {
  showImage('', '', view() === 'picture' ? 'This browser could not show the picture. The link works all the same where its kind is known.' : 'This browser has no preview of this picture. It can be uploaded all the same.')
})

// showPicture shows the picture as storage has it.
function showPicture(anyway = false) {
  const kind = picture.content_type.replace(/^image\/|-sequence$/g, '').toUpperCase()
  $('facts-name').textContent = ''
  $('facts').textContent = `${kind} · ${bytes(picture.size)}`
  $('link').value = picture.picture_url
  if (picture.size > showAtMost && !anyway && shown !== picture.etag) {
    showImage('', '', 'This picture is large, and not shown by itself.', true)
  } else if (shown !== picture.etag) { // a new link to the same picture is no reason to load it again
    // The URL stands still while pictures change; storage passes over what it does not know.
    showImage(`${picture.picture_url}&etag=${encodeURIComponent(picture.etag)}`, `The picture of ${user}`)
    shown = picture.etag
  }
  show('picture')
  tick()
}

$('show-anyway').addEventListener('click', () => showPicture(true))

// load shows what there is under the name.
function load(options) {
  loaded = loadNow(options)
  return loaded
}

let loaded = Promise.resolve() // when what was asked for last is there, or is not

async function loadNow({ before = '' } = {}) {
  loading.abort()
  loading = new AbortController()
  const { signal } = loading
  try {
    picture = await current(signal)
    showPicture()
  } catch (err) {
    if (signal.aborted) return
    picture = undefined
    showImage('', '')
    show(err.code === 'not_found' ? 'empty' : 'start')
    if (err.code !== 'not_found') refused(err, load, before)
  }
}

// current asks what there is under the name, by a link that has all of its life before it.
const current = (signal) => ask('GET', catPath(user), { query: { ttl: `${ttl}s` }, signal })

// choose goes to a name, which becomes the page's address.
async function choose(name, { push = true } = {}) {
  const stopped = !upload?.stop ? '' : upload.allSent ? 'All of the upload had been sent: it may be stored.' : 'The upload was cancelled.'
  upload?.stop?.()
  upload = undefined
  loading.abort()
  $('confirm').close()
  quiet()
  user = name.toWellFormed()
  $('name').value = user
  const url = new URL(location)
  url.search = user ? new URLSearchParams({ user }) : ''
  if (push && url.href !== location.href) history.pushState(null, '', url)
  picture = undefined
  showImage('', '')
  if (!user) {
    show('start')
    return note(stopped)
  }
  if (/^\.+$/.test(user)) { // browsers take these for steps in a path
    show('start')
    return refused(new Problem('invalid_user', { detail: 'It ends with a dot.' }))
  }
  show('loading')
  await load()
  if (stopped && user === name && $('message').hidden) note(stopped)
}

$('choose').addEventListener('submit', async (event) => {
  event.preventDefault()
  const name = $('name').value.trim()
  if (!name) return refused(new Problem('invalid_user', { detail: 'It is empty.' }))
  await choose(name)
  if ($('message').hidden && view() !== 'preview') $('stage').focus() // which tells its name
})

addEventListener('popstate', () => { // back, or forward
  if (about && !token && view() !== 'signed-out') choose(new URLSearchParams(location.search).get('user') ?? '', { push: false })
})

// ---- Choosing a picture, and uploading it

// take has a look at the files that somebody brings, and shows the first as it would be.
function take(files) {
  if (!about || view() === 'uploading' || $('confirm').open) return
  const file = files[0]
  if (!mayChange()) return refused(new Problem('unauthenticated'))
  if (view() === 'loading') { // until it is known what is there
    const of = user
    const waited = loaded
    return waited.then(() => user === of && (loaded !== waited || ['empty', 'picture'].includes(view())) && take(files))
  }
  if (!user || !['empty', 'picture', 'preview'].includes(view())) return refused(new Problem('no_name'))
  if (files.length > 1) return refused(new Problem('several'))
  if (file.size > largest()) return refused(new Problem('too_large', { detail: `${file.name} has ${bytes(file.size)}.` }))
  if (file.size === 0) return refused(new Problem('empty'))
  if (file.type && !about.picture_types.includes(file.type)) return refused(new Problem('unsupported_media_type', { detail: `${file.name} is of the type ${file.type}.` }))
  quiet()
  loading.abort() // a new link on its way would take the preview's place
  upload = new Upload(file)
  if (file.size > showAtMost) showImage('', '', 'Too large for a preview. It can be uploaded all the same.')
  else showImage(URL.createObjectURL(file), `Preview of ${file.name}`)
  $('facts-name').textContent = file.name
  $('facts').textContent = bytes(file.size)
  show('preview')
  $('upload').focus()
}

const largest = () => Math.max(about.max_picture_size, about.max_direct_size)

$('file').addEventListener('change', () => {
  const files = [...$('file').files]
  $('file').value = '' // so that the same one can be chosen again
  if (files.length) take(files)
})

const pick = () => $('file').click()
$('replace').addEventListener('click', pick)

addEventListener('paste', (event) => {
  const files = [...event.clipboardData.files]
  if (files.length) {
    event.preventDefault()
    take(files)
  }
})

let over = 0 // elements that a file is held over
const holdsFiles = (event) => event.dataTransfer?.types.includes('Files')
function hover(by) {
  over = Math.max(0, over + by)
  document.body.classList.toggle('over', over > 0)
}
addEventListener('dragenter', (event) => holdsFiles(event) && hover(1))
addEventListener('dragleave', (event) => holdsFiles(event) && hover(-1))
addEventListener('dragover', (event) => holdsFiles(event) && event.preventDefault())
addEventListener('drop', (event) => {
  if (!holdsFiles(event)) return
  event.preventDefault()
  hover(-over)
  const files = [...event.dataTransfer.files]
  if (files.length) take(files)
})

// back shows what there was before a file was chosen.
function back() {
  quiet()
  upload = undefined
  if (picture) {
    showPicture()
    $('replace').focus()
  } else {
    showImage('', '')
    show('empty')
    $('file').focus()
  }
}

$('discard').addEventListener('click', () => (upload.allSent ? leave() : back()))
$('upload').addEventListener('click', () => start())

async function start() {
  quiet()
  const mine = upload
  const { file } = mine
  const running = new AbortController()
  const { signal } = running
  mine.stop = () => running.abort()
  const begun = Date.now()
  let first, said = 0 // bytes of an earlier try; percents that were told to who listens
  const progress = (sent) => {
    if (signal.aborted) return
    first ??= sent
    const percent = Math.floor(sent / file.size * 100)
    const seconds = (Date.now() - begun) / 1000
    const left = seconds > 2 && sent > first ? ` · ${lasting((file.size - sent) * seconds / (sent - first))} left` : ''
    $('progress').value = percent
    mine.allSent ||= sent >= file.size // and may be stored from then on, whoever leaves
    $('progress-text').textContent = sent < file.size ? `${percent} % · ${bytes(sent)} of ${bytes(file.size)}${left}` : 'All sent. It is being checked and stored…'
    if (percent >= said + 25) {
      said = percent - percent % 25
      $('said').textContent = `${said} % sent`
    }
  }
  $('progress').value = 0
  $('progress-text').textContent = $('said').textContent = ''
  show('uploading')
  $('cancel').focus()
  let seems = false // to be stored, without a word of it
  try {
    await mine.run(signal, progress)
  } catch (err) {
    if (signal.aborted) return
    mine.mayBeStored ||= mine.allSent && err.outcome === 'unknown'
    seems = await look(mine, err, signal)
    if (signal.aborted) return
    mine.stop = undefined
    mine.allSent = mine.mayBeStored
    if (!seems) {
      if (advice[err.code]?.act === 'pick') back()
      else show('preview')
      return refused(err, start, err.outcome === 'unknown' ? 'It is not known whether your picture was stored. ' : '')
    }
  }
  upload = undefined
  show('loading')
  await load({ before: seems ? '' : 'Your picture is stored, but there is no link to it yet. ' })
  if (view() !== 'picture') return
  note(seems ? 'The answer was lost, but this is there now. Here is the link to share.' : 'Stored. Here is the link to share.')
  $('copy').focus()
}

// look gets the stored picture after a write of unknown outcome. It returns whether that seems to be the uploaded one:
// browsers repeat requests without an answer by themselves, and then show the answer to that. The next try replaces the
// picture of somebody who was faster, or one that storage has damaged.
async function look(mine, { code, outcome }, signal) {
  const faster = code === 'precondition_failed' || code === 'conflict'
  const damaged = outcome === 'stored'
  if (!faster && !damaged && outcome !== 'unknown') return false
  const { seen } = mine
  let there
  try {
    there = await current(AbortSignal.any([signal, AbortSignal.timeout(10_000)]))
  } catch (err) {
    if (err.code !== 'not_found') return false
  }
  if (faster || damaged) { // which is told
    picture = there
    mine.seen = there?.etag
  }
  return !damaged && Boolean(there) && there.etag !== seen && there.size === mine.file.size
}

// leave is for an upload that may be stored all the same: it shows what is there.
async function leave() {
  const of = user
  quiet()
  upload = undefined
  show('loading')
  $('stage').focus()
  await load()
  if (user === of && ['picture', 'empty'].includes(view()) && $('message').hidden) note('All had been sent, and may be stored yet. This is what is there now.')
}

$('cancel').addEventListener('click', () => {
  upload.stop()
  if (upload.allSent) return leave()
  back()
  note(picture ? 'Cancelled. The picture is the one that it was.' : 'Cancelled. Nothing was stored.')
})

addEventListener('beforeunload', (event) => view() === 'uploading' && event.preventDefault())

// ---- The link

$('copy').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText($('link').value)
  } catch { // not allowed, or not over HTTPS
    $('link').select()
    if (!document.execCommand('copy')) return note('The link is selected: copy it with Ctrl+C.')
    $('copy').focus()
  }
  note('Copied.')
})

$('link').addEventListener('focus', () => $('link').select())

async function freshLink() {
  quiet()
  loading.abort()
  loading = new AbortController()
  try {
    picture = await current(loading.signal)
    showPicture()
  } catch (err) {
    if (err.code === 'not_found') return load()
    return refused(err, freshLink)
  }
  note('Here is a new link.')
}

$('renew').addEventListener('click', async () => {
  await freshLink()
  if (view() === 'picture' && $('message').hidden) $('copy').focus()
})

$('ttl').addEventListener('change', () => {
  ttl = Number($('ttl').value)
  freshLink()
})

$('download').addEventListener('click', async function download() {
  quiet()
  const of = user
  try {
    const { picture_url: url } = await ask('GET', catPath(of), { query: { download: of } })
    if (user === of && view() === 'picture') Object.assign(document.createElement('a'), { href: url, download: '' }).click()
  } catch (err) {
    if (user !== of || view() !== 'picture') return
    if (err.code === 'not_found') return load()
    refused(err, download)
  }
})

// ---- Deleting

let doomed // the entity tag of the picture that somebody is asked about

function askToDelete() {
  doomed = picture.etag
  $('confirm-title').textContent = `Delete ${user}’s cat?`
  $('confirm').showModal()
}

$('delete').addEventListener('click', askToDelete)
$('confirm-keep').addEventListener('click', () => $('confirm').close())
$('confirm').addEventListener('close', () => view() === 'picture' && $('delete').focus())

async function remove() {
  $('confirm').close()
  quiet()
  loading.abort()
  loading = new AbortController()
  const { signal } = loading
  show('loading')
  $('stage').focus()
  try {
    await change(ask('DELETE', catPath(user), { headers: { 'If-Match': doomed } })) // which nothing takes back
  } catch (err) {
    if (signal.aborted) return
    if (err.outcome === 'unknown') {
      const of = user
      const before = 'It is not known whether the picture was deleted. '
      await load({ before })
      if (user !== of || !['empty', 'picture'].includes(view())) return
      if (view() === 'picture') return refused(err, askToDelete, `${before}This is what is there now. `)
      note('The answer was lost, but there is no picture now.')
      return $('file').focus()
    }
    if (err.code === 'precondition_failed') {
      await load()
      return view() === 'picture' && refused(new Problem('another'), askToDelete)
    }
    if (err.code !== 'not_found') {
      showPicture()
      return refused(err, askToDelete)
    }
  }
  if (signal.aborted) return // another name is looked at
  picture = undefined
  showImage('', '')
  show('empty')
  note('Deleted.')
  $('file').focus()
}

$('confirm-delete').addEventListener('click', () => { loaded = remove() })

// ---- Refusals

// What each code means for who is at the page, and what can be done about it: retry,
// pick another picture, another name, sign in, or load the page again.
const busy = { title: 'The service is not ready', text: 'It is busy, or starting. Try again in a moment.', act: 'retry' }
const broken = { title: 'Something is wrong at the service', text: 'You can try again. If it stays like this, tell whoever runs it.', act: 'retry' }
const advice = {
  offline: { title: 'You are offline', text: 'Try again when you have a connection.', act: 'retry' },
  unreachable: { title: 'The service cannot be reached', text: 'Look whether you are online, and try again.', act: 'retry' },
  broke_off: { title: 'The connection broke off', text: 'Look whether you are online, and try again.', act: 'retry' },
  storage_refused: { title: 'Storage did not take the picture', text: 'Try again. If it stays like this, tell whoever runs this service.', act: 'retry' },
  damaged: { title: 'Storage has damaged the picture', text: 'It has stored other bytes than yours. Try again to replace them.', act: 'retry' },
  strange: { ...broken, title: 'Something answered that is not this service' },
  incomplete: { title: 'The picture did not arrive whole', text: 'Nothing was stored. Try again.', act: 'retry' },
  stalled: { title: 'The connection is too slow', text: 'The picture stopped coming, and nothing was stored. Try again, with a better connection if you can.', act: 'retry' },
  digest_mismatch: { title: 'The picture was changed on its way', text: 'Nothing was stored. Try again.', act: 'retry' },
  no_such_upload: { title: 'The upload took too long', text: 'What was sent has expired. Try again, from the start.', act: 'retry' },
  too_large: { title: 'This picture is too large', text: () => `Pictures can have ${bytes(largest())} and ${Math.floor(about.max_pixels / 1e6)} million pixels at most. Save it smaller, or choose another one.`, act: 'pick' },
  unsupported_media_type: { title: 'This is no picture that can be shared here', text: () => `It can be ${kinds()}. Choose another file, or save it as one of these.`, act: 'pick' },
  empty: { title: 'This file is empty', text: 'There is nothing in it. Choose another one.', act: 'pick' },
  several: { title: 'One picture at a time', text: 'There is room for one picture under a name. Choose one.', act: 'pick' },
  no_name: { title: 'Whose cat is it?', text: 'Choose a name first, and then bring the picture.', act: 'name' },
  invalid_user: { title: 'This name cannot be used', text: 'Choose another one: not too long, without slashes, and with no dot at the end.', act: 'name' },
  conflict: { title: 'Somebody else was faster', text: 'Another picture was stored under this name at the same moment. Try again to replace that one.', act: 'retry' },
  archived: { title: 'This picture is archived', text: 'Storage keeps it in its archive tier, where it cannot be changed. Ask whoever runs this service to rehydrate it, or choose another name.', act: 'name' },
  immutable: { title: 'This picture is protected', text: 'A policy of storage does not let it be changed. Ask whoever runs this service, or choose another name.', act: 'name' },
  leased: { title: 'This picture is locked', text: 'A program holds a lease on it. Try again later, or ask whoever runs this service.', act: 'retry' },
  rejected_by_storage: { title: 'Storage does not allow this', text: 'Ask whoever runs this service: the reason is in its log.', act: 'retry' },
  precondition_failed: { title: 'The picture has changed meanwhile', text: 'Somebody else has stored or deleted one under this name since you looked. Try again to have yours in its place.', act: 'retry' },
  another: { title: 'The picture has changed meanwhile', text: 'Somebody else has stored this one under the name since you looked. Nothing was deleted.', act: 'retry' },
  rate_limited: { title: 'That was a lot at once', text: 'The service takes only so many requests from one place. Wait a moment, and try again.', act: 'retry' },
  unauthenticated: { title: 'You are not signed in', text: 'Sign in, and do it then.', act: 'sign-in' },
  sign_in_ended: { title: 'Your sign-in has ended', text: 'Sign in again to go on. What is stored stays as it is.', act: 'sign-in' },
  forbidden: { title: 'This is not your picture', text: 'You are signed in as somebody who may not do this.', act: 'sign-in' },
  cross_origin: { title: 'The service does not know this page as its own', text: 'Open it at its own address.', act: 'reload' },
  issuer_unavailable: { title: 'Your sign-in cannot be checked just now', text: 'Try again in a moment.', act: 'retry' },
  storage_unavailable: { title: 'Storage does not answer', text: 'Try again in a moment.', act: 'retry' },
  throttled: busy, overloaded: busy, signer_unavailable: busy,
  sign_in_stale: { title: 'That sign-in was not begun here', text: 'It has ended, or was begun in another tab. Nothing was signed in: do it again.', act: 'sign-in' },
  sign_in_refused: { title: 'You were not signed in', text: 'The sign-in service did not do it. You can try again.', act: 'sign-in' },
  sign_in_unreachable: { title: 'The sign-in service cannot be reached', text: 'Try again in a moment. If it stays like this, tell whoever runs this service.', act: 'sign-in' },
  sign_in_blocked: { title: 'Sign-in needs site data', text: 'This browser keeps none for this page. Allow it, and sign in again.', act: 'sign-in' },
  sign_in_insecure: { title: 'Sign-in needs HTTPS', text: 'Open this page at an address that begins with https.', act: 'none' },
}
const labels = { retry: 'Try again', pick: 'Choose another picture', name: 'Choose a name', 'sign-in': 'Sign in', reload: 'Load the page again' }

let retryAt = 0
let act = () => {}

// refused says, after what there is to say before, what was refused and what to do;
// again does the same once more.
function refused(err, again, before = '') {
  if (err.name === 'AbortError') return // somebody wanted something else
  if (!(err instanceof Problem)) {
    console.error(err)
    err = new Problem('internal')
  }
  if (err.code === 'unauthenticated' && token) signOut()
  const known = advice[err.code] ?? broken
  const doing = known.act === 'retry' && !again ? 'reload' : known.act === 'sign-in' && !about?.sign_in ? 'none' : known.act
  note('')
  $('message-title').textContent = known.title
  $('message-text').textContent = before + (typeof known.text === 'function' ? known.text() : known.text)
  $('message-detail').textContent = err.detail + (err.requestId && known === broken ? ` Its number for this is ${err.requestId}.` : '')
  act = { retry: again, pick, name: () => $('name').focus(), 'sign-in': signIn, reload: () => location.reload(), none: () => {} }[doing]
  $('message-action').hidden = doing === 'none'
  $('message-action').dataset.label = labels[doing] ?? ''
  retryAt = doing === 'retry' || doing === 'reload' ? Date.now() + err.retryAfter * 1000 : 0
  $('message-close').hidden = view() === 'start' && $('choose').hidden // there would be no way on
  $('message').hidden = false
  tick()
  if (doing === 'none') $('message').focus()
  else $('message-action').focus()
}

// quiet takes away what was said.
function quiet() {
  $('message').hidden = true
  $('session').hidden = true
  note('')
}

$('message-action').addEventListener('click', async () => {
  if ($('message-action').ariaDisabled === 'true') return
  if (act !== pick) quiet()
  await act()
  if (document.activeElement === document.body) $($('stage').checkVisibility() ? 'stage' : 'title').focus()
})

$('message-close').addEventListener('click', () => {
  quiet()
  const next = { preview: ['upload'], picture: ['copy', 'renew'], empty: ['file'] }[view()] ?? []
  $(next.find((id) => $(id).checkVisibility()) ?? 'title').focus()
})

// ---- Signing in: authorization code with PKCE, as a public client

const base64url = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '')
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)))
const callback = () => `${location.origin}/`

// claimsOf reads a token, which the service verifies; undefined where it is no JWT.
function claimsOf(jwt) {
  try {
    const part = jwt.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (c) => c.charCodeAt(0))))
  } catch {
    return undefined
  }
}

// ofIssuer asks the issuer for JSON.
async function ofIssuer(url, form) {
  let answer
  try {
    const to = new URL(url)
    if (to.protocol !== 'https:') throw new TypeError(`${to.origin} is not HTTPS`)
    answer = await fetch(to, { method: form ? 'POST' : 'GET', body: form, credentials: 'omit', cache: 'no-store' })
  } catch {
    throw new Problem('sign_in_unreachable')
  }
  const said = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Problem('sign_in_refused', { detail: `It says: ${said.error_description ?? said.error ?? `HTTP status ${answer.status}`}.` })
  return said
}

async function discover() {
  const { issuer, discovery_url } = about.sign_in
  const found = await ofIssuer(discovery_url)
  if (found.issuer !== issuer) throw new Problem('sign_in_refused', { detail: 'It says that it is another one.' })
  return found
}

async function signIn() {
  quiet()
  try {
    if (!crypto.subtle) throw new Problem('sign_in_insecure')
    const { client_id, scope } = about.sign_in
    const { authorization_endpoint: endpoint } = await discover()
    const kept = { verifier: random(), state: random(), nonce: random() }
    const challenge = base64url(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(kept.verifier)))
    const to = new URL(endpoint)
    if (to.protocol !== 'https:') throw new Problem('sign_in_refused', { detail: 'It is not at an https address.' })
    for (const [name, value] of Object.entries({
      response_type: 'code', client_id, scope, redirect_uri: callback(), state: kept.state, nonce: kept.nonce, code_challenge: challenge, code_challenge_method: 'S256',
    })) to.searchParams.set(name, value)
    try {
      sessionStorage.setItem(signInKey, JSON.stringify(kept))
    } catch {
      throw new Problem('sign_in_blocked')
    }
    location.assign(to)
  } catch (err) {
    refused(err, signIn)
  }
}

for (const id of ['sign-in', 'sign-in-top']) $(id).addEventListener('click', signIn)

// signedIn makes a token of what the issuer sent along with the person.
async function signedIn(said, kept) {
  const { issuer, client_id, user_claim } = about.sign_in
  if (!kept || said.get('state') !== kept.state || (said.get('iss') ?? issuer) !== issuer) throw new Problem('sign_in_stale')
  if (said.get('error')) throw new Problem('sign_in_refused', { detail: `It says: ${said.get('error_description') ?? said.get('error')}.` })
  const { token_endpoint: endpoint, end_session_endpoint: endSession } = await discover()
  const got = await ofIssuer(endpoint, new URLSearchParams({
    grant_type: 'authorization_code', code: said.get('code'), redirect_uri: callback(), client_id, code_verifier: kept.verifier,
  }))
  const id = claimsOf(got.id_token ?? '')
  if (id?.nonce !== kept.nonce || id.iss !== issuer || ![id.aud].flat().includes(client_id)) throw new Problem('sign_in_stale')
  const name = claimsOf(got.access_token ?? '')?.[user_claim]
  if (typeof name !== 'string' || !name) throw new Problem('sign_in_refused', { detail: `Its access token has no claim ${user_claim}.` })
  token = { value: got.access_token, user: name, ends: Date.now() + (Number(got.expires_in) || 300) * 1000, endSession }
}

// signOut forgets who it is; what is under way in their name ends.
function signOut() {
  $('confirm').close()
  upload?.stop?.()
  loading.abort()
  token = picture = upload = undefined
  user = ''
  showImage('', '')
  $('link').value = ''
  $('who').hidden = true
  history.replaceState(null, '', '/')
  quiet()
  show(about.read_access === 'anyone' ? 'start' : 'signed-out')
}

$('sign-out').addEventListener('click', () => {
  const { endSession } = token
  signOut()
  note('Signed out of this page.')
  showSession(endSession)
  $('title').focus()
})

// showSession says that the sign-out does not end the issuer's session. It links to the issuer's logout page, if the issuer has one
// (OpenID Connect RP-Initiated Logout 1.0). Without an id_token_hint the issuer asks the user to confirm.
function showSession(endSession) {
  const { issuer, client_id } = about.sign_in
  $('session-issuer').textContent = new URL(issuer).host
  const to = URL.canParse(endSession ?? '') ? new URL(endSession) : undefined
  $('end-session').hidden = to?.protocol !== 'https:'
  if (!$('end-session').hidden) {
    to.searchParams.set('client_id', client_id)
    $('end-session').href = to
  }
  $('session').hidden = false
}

// ---- Time

// tick says how long links live, and when to try again.
function tick() {
  if (token && Date.now() > token.ends && view() !== 'uploading') {
    signOut()
    refused(new Problem('sign_in_ended'))
  }
  if (!$('message').hidden) {
    const wait = Math.ceil((retryAt - Date.now()) / 1000)
    const button = $('message-action')
    const label = wait > 0 ? `${button.dataset.label} in ${lasting(wait)}` : button.dataset.label
    if (button.textContent !== label) button.textContent = label
    if (button.ariaDisabled === 'true' && wait <= 0) note('')
    button.ariaDisabled = String(wait > 0)
  }
  if (view() !== 'picture' || !picture) return
  const left = Math.ceil((Date.parse(picture.expires_at) - skew - Date.now()) / 1000)
  const ended = left <= 0
  $('left').textContent = ended ? 'It has ended' : `Ends in ${lasting(left)}`
  if (ended === $('copy').hidden) return
  const focused = document.activeElement === $('copy')
  $('copy').hidden = ended
  $('renew').hidden = !ended
  if (!ended) return
  $('link').value = ''
  note('')
  if (focused) $('renew').focus()
}

const units = [[86400, 'day', 'd'], [3600, 'hour', 'h'], [60, 'minute', 'min'], [1, 'second', 's']]

// lasting writes seconds with the two largest units that they have.
function lasting(seconds, inWords = false) {
  let rest = Math.max(1, Math.ceil(seconds))
  const parts = []
  for (const [size, word, short] of units) {
    const n = Math.floor(rest / size)
    rest -= n * size
    if (n > 0) parts.push(inWords ? `${n} ${word}${n > 1 ? 's' : ''}` : `${n} ${short}`)
    else if (parts.length) break
  }
  return parts.slice(0, 2).join(' ')
}

function bytes(n) {
  const names = ['bytes', 'KB', 'MB', 'GB', 'TB']
  let i = 0
  for (; n >= 1000 && i < names.length - 1; i++) n /= 1024
  return `${n.toLocaleString('en', { maximumSignificantDigits: 3 })} ${names[i]}`
}

function kinds() {
  const names = about.picture_types.map((type) => ({ 'image/jpeg': 'JPEG', 'image/webp': 'WebP' })[type] ?? type.replace(/^image\/|-sequence$/g, '').toUpperCase())
  return new Intl.ListFormat('en', { type: 'disjunction' }).format(new Set(names))
}

// ---- The beginning

async function begin() {
  const said = new URLSearchParams(location.search)
  let kept
  try {
    kept = JSON.parse(sessionStorage.getItem(signInKey))
    sessionStorage.removeItem(signInKey)
  } catch { /* site data are blocked, and nobody has signed in */ }
  const back = said.has('state') && (said.has('code') || said.has('error'))
  if (back) history.replaceState(null, '', '/') // a code is nothing for the history
  setInterval(tick, 500)
  try {
    about = await ask('GET', '/about')
  } catch (err) {
    show('start')
    $('choose').hidden = true
    return refused(err) // and with the page anew, its policy knows where storage is
  }
  ttl = about.link_ttl_seconds
  const lives = new Set([60, 600, 3600, 6 * 3600, 86400, 3 * 86400, about.link_max_ttl_seconds].filter((s) => s <= about.link_max_ttl_seconds).concat(ttl))
  $('ttl').replaceChildren(...[...lives].sort((a, b) => a - b).map((s) => new Option(lasting(s, true), s, s === ttl, s === ttl)))
  $('file').accept = about.picture_types.join(',')
  $('limits').textContent = `${kinds()}, up to ${bytes(largest())}`
  if (about.read_access) $('name-hint').textContent = 'Anyone can look. Who signs in can change the picture that is their own.'
  if (about.read_access && !about.sign_in) {
    $('sign-in').hidden = true
    $('sign-in-title').textContent = 'This page cannot sign you in'
    $('sign-in-text').textContent = 'The service knows its callers, and its operator has not set up a sign-in for this page. Programs can use it with a token.'
  }
  if (back && about.sign_in) {
    try {
      await signedIn(said, kept)
    } catch (err) {
      signOut()
      return refused(err)
    }
    $('who-name').textContent = token.user
    $('who').hidden = false
    return choose(token.user)
  }
  if (about.read_access && about.read_access !== 'anyone') return show('signed-out')
  return choose(said.get('user') ?? '', { push: false })
}

begin()
