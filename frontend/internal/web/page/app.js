// The page of cats-api shows and changes the picture of one user. It calls the public API like any other client. It inserts
// untrusted strings as text, never as markup.

const $ = (id) => document.getElementById(id)

const signInKey = 'cats-sign-in' // in sessionStorage, while the user is at the issuer
const maxAutoShow = 64 << 20 // bytes; larger pictures are shown only on request
const parallelBlocks = 4
const maxTries = 5
const storageVersion = { 'x-ms-version': '2021-12-02' }

let about // the response to GET /about
let user = ''
let picture // the response to GET /cat/{user}; undefined if there is none
let ttl // of signed URLs, in seconds
let token // {value, user, ends}; in memory only
let upload // the chosen file, or the upload in progress
let loading = new AbortController() // of the request for the displayed picture
let shownETag = '' // ETag of the displayed picture, if it is from storage
let skew = 0 // the service's clock minus the local clock, in ms

// Problem is an error: a problem document of the service, or an error of this page.
class Problem extends Error {
  constructor(code, { detail = '', retryAfter = 0, requestId = '', outcome = '' } = {}) {
    super(detail || code)
    Object.assign(this, { code, detail, retryAfter, requestId, outcome })
  }
}

// ---- Requests to the service

const catPath = (of) => `/cat/${encodeURIComponent(of)}`
const authorization = () => (token ? { Authorization: `Bearer ${token.value}` } : {})

// callAPI returns the JSON of the response, undefined if it has no body. It throws a Problem.
async function callAPI(method, path, { query = {}, headers = {}, signal } = {}) {
  const search = new URLSearchParams(query).toString()
  let response, text
  try {
    response = await fetch(search ? `${path}?${search}` : path, { method, headers: { ...authorization(), ...headers }, cache: 'no-store', signal })
    text = await response.text()
  } catch (err) {
    if (signal?.aborted) throw err
    throw new Problem(navigator.onLine ? 'unreachable' : 'offline')
  }
  const now = Date.parse(response.headers.get('Date'))
  if (now) skew = now - Date.now()
  if (!response.ok) throw parseProblem(response.status, text, (name) => response.headers.get(name))
  return text ? parseJSON(text) : undefined
}

function parseJSON(text) {
  try {
    return JSON.parse(text)
  } catch { // such as the login page of a Wi-Fi network
    throw new Problem('strange')
  }
}

function parseProblem(status, text, header) {
  const retryAfter = Number(header('Retry-After')) || 0
  try {
    const { code, detail, request_id: requestId, outcome } = JSON.parse(text)
    if (typeof code === 'string') return new Problem(code, { detail: `The service says: ${detail}.`, retryAfter, requestId, outcome })
  } catch { /* not JSON */ }
  // A proxy has responded.
  return new Problem(status === 413 ? 'too_large' : status === 429 ? 'rate_limited' : 'strange', { detail: `The response has HTTP status ${status}.`, retryAfter })
}

const noResponse = ['broke_off', 'offline', 'unreachable', 'strange'] // codes of this page: there is no response of the service

// write awaits a request that changes the picture. Without a response of the service, the outcome is unknown.
async function write(request) {
  try {
    return await request
  } catch (err) {
    if (noResponse.includes(err.code)) err.outcome = 'unknown'
    throw err
  }
}

// send sends body and calls sent with the bytes sent so far, which fetch cannot do. It returns the response with any status, and
// throws a Problem if there is none.
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

// Upload stores a file as the picture of the user. After a Problem, run can be called again; it does not repeat what storage has
// acknowledged.
class Upload {
  constructor(file) {
    this.file = file
    this.seen = picture?.etag // ETag of the picture that the upload replaces
  }

  get conditions() { return this.seen ? { 'If-Match': this.seen } : { 'If-None-Match': '*' } }

  async run(signal, progress) {
    await (this.file.size <= about.max_picture_size ? this.#viaAPI(signal, progress) : this.#direct(signal, progress))
  }

  async #viaAPI(signal, progress) {
    await write(this.#put(signal, progress))
  }

  async #put(signal, progress) {
    const response = await send('PUT', catPath(user), this.file, { headers: { ...authorization(), ...this.conditions }, signal, sent: progress })
    if (response.status !== 200) throw parseProblem(response.status, response.text, response.header)
    parseJSON(response.text)
  }

  async #direct(signal, progress) {
    if (!this.session || Date.parse(this.session.expires_at) - skew - Date.now() < 60_000) {
      this.session = await callAPI('POST', `${catPath(user)}/upload`, { query: { size: this.file.size }, signal })
      this.blocks = new Set()
      this.staged = false
    }
    if (!this.staged) {
      await (this.session.block_size ? this.#sendBlocks(signal, progress) : this.#sendWhole(signal, progress))
      this.staged = true
    }
    progress(this.file.size)
    try {
      await this.#commit(signal)
    } catch (err) {
      if (['no_such_upload', 'incomplete', 'digest_mismatch'].includes(err.code)) this.session = undefined
      throw err
    }
  }

  // commit repeats a commit with an unknown outcome, which is safe, and one that is rejected because the first is in progress.
  async #commit(signal) {
    let outcome = '' // of an earlier try
    for (let tries = 1; ; tries++) {
      try {
        return await write(callAPI('POST', `${catPath(user)}/upload/${this.session.id}/commit`, { headers: this.conditions, signal }))
      } catch (err) {
        const again = err.code !== 'offline' && (err.outcome === 'unknown' || err.code === 'overloaded')
        if (err instanceof Problem) outcome = err.outcome ||= outcome
        if (!again || tries === maxTries) throw err
        await pause((err.retryAfter || 1) * 1000, signal)
      }
    }
  }

  async #sendWhole(signal, progress) {
    const response = await this.#retry(signal, (again) => send('PUT', this.session.upload_url, this.file, {
      headers: { 'x-ms-blob-type': 'BlockBlob', ...storageVersion }, signal, sent: progress,
    }).then((response) => (again && [403, 409].includes(response.status) ? { status: 201 } : response))) // an earlier try was successful
    this.#checkStorage(response)
  }

  async #sendBlocks(signal, progress) {
    const { block_size: size, upload_url: url } = this.session
    const ids = Array.from({ length: Math.ceil(this.file.size / size) }, (_, i) => btoa(String(i).padStart(8, '0')))
    const inFlight = new Map() // bytes sent, by block in progress
    const report = () => {
      let sum = 0
      for (const i of this.blocks) sum += this.#block(i, size).size
      for (const n of inFlight.values()) sum += n
      progress(Math.min(sum, this.file.size))
    }
    const failed = new AbortController() // the first failure cancels the others
    const both = AbortSignal.any([signal, failed.signal])
    const todo = [...ids.keys()].filter((i) => !this.blocks.has(i))
    const worker = async () => {
      while (todo.length) {
        const i = todo.shift()
        const response = await this.#retry(both, () => send('PUT', `${url}&comp=block&blockid=${encodeURIComponent(ids[i])}`, this.#block(i, size), {
          headers: storageVersion, signal: both, sent: (n) => { inFlight.set(i, n); report() },
        }))
        inFlight.delete(i)
        this.#checkStorage(response)
        this.blocks.add(i)
        report()
      }
    }
    try {
      await Promise.all(Array.from({ length: parallelBlocks }, worker))
    } catch (err) {
      failed.abort(err)
      throw err
    }
    const list = `<?xml version="1.0" encoding="utf-8"?><BlockList>${ids.map((id) => `<Latest>${id}</Latest>`).join('')}</BlockList>`
    this.#checkStorage(await this.#retry(signal, () => send('PUT', `${url}&comp=blocklist`, list, { headers: { 'Content-Type': 'application/xml', ...storageVersion }, signal })))
  }

  #block(i, size) { return this.file.slice(i * size, (i + 1) * size) }

  // retry repeats an attempt without a response, or with a temporary error.
  async #retry(signal, attempt) {
    for (let tries = 1; ; tries++) {
      try {
        const response = await attempt(tries > 1)
        if (response.status < 500 && ![408, 429].includes(response.status) || tries === maxTries) return response
      } catch (err) {
        if (err.code !== 'broke_off' || tries === maxTries) throw err // the user retries when online again
      }
      await pause(2 ** (tries - 2) * 1000 * (0.75 + Math.random() / 2), signal)
    }
  }

  // checkStorage throws a Problem unless storage has accepted the request.
  #checkStorage({ status }) {
    if (status === 201) return
    if (status === 403 || status === 404) this.session = undefined // expired
    throw new Problem('storage_refused', { detail: `Storage responded with HTTP status ${status}.` })
  }
}

// ---- Views

// show displays the elements whose data-in contains view.
function show(view) {
  document.body.dataset.view = view
  for (const el of document.querySelectorAll('[data-in]')) el.hidden = !el.dataset.in.split(' ').includes(view)
  for (const el of document.querySelectorAll('[data-write]')) el.hidden = !mayChange()
  $('choose').hidden = view === 'signed-out' || Boolean(token)
  $('sign-in-top').hidden = view === 'signed-out' || Boolean(token) || !about?.sign_in
  $('show').disabled = $('name').disabled = view === 'uploading'
  $('upload').textContent = picture ? 'Upload and replace' : 'Upload'
  $('title').textContent = user && view !== 'signed-out' ? `${user}’s cat` : 'Share a cat'
  document.title = user && view !== 'signed-out' ? `${user} · Cats` : 'Cats'
}

const view = () => document.body.dataset.view
const mayChange = () => !about?.read_access || Boolean(token)

function note(text) { $('note').textContent = text }

// showImage displays the image at url, or the text why if url is "".
function showImage(url, alt, why = '', askFirst = false) {
  shownETag = ''
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
  showImage('', '', view() === 'picture' ? 'This browser cannot show this type of picture. The link works in browsers that can.' : 'This browser cannot preview this picture. You can still upload it.')
})

// showPicture displays the stored picture.
function showPicture(anyway = false) {
  const kind = picture.content_type.replace(/^image\/|-sequence$/g, '').toUpperCase()
  $('facts-name').textContent = ''
  $('facts').textContent = `${kind} · ${formatBytes(picture.size)}`
  $('link').value = picture.picture_url
  if (picture.size > maxAutoShow && !anyway && shownETag !== picture.etag) {
    showImage('', '', 'This picture is large, so it is not shown automatically.', true)
  } else if (shownETag !== picture.etag) { // a new signed URL for the same picture does not reload it
    // The signed URL of a replaced picture may be the same; storage ignores the parameter etag.
    showImage(`${picture.picture_url}&etag=${encodeURIComponent(picture.etag)}`, `The picture of ${user}`)
    shownETag = picture.etag
  }
  show('picture')
  tick()
}

$('show-anyway').addEventListener('click', () => showPicture(true))

// load gets and displays the user's picture.
function load(options) {
  loaded = loadNow(options)
  return loaded
}

let loaded = Promise.resolve() // resolves when the last request has ended

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
    if (err.code !== 'not_found') showProblem(err, load, before)
  }
}

// current gets the user's picture with a new signed URL.
const current = (signal) => callAPI('GET', catPath(user), { query: { ttl: `${ttl}s` }, signal })

// choose opens the user called name and puts it into the page's URL.
async function choose(name, { push = true } = {}) {
  const stopped = !upload?.stop ? '' : upload.allSent ? 'The whole picture had been sent and may be stored.' : 'The upload was canceled.'
  upload?.stop?.()
  upload = undefined
  loading.abort()
  $('confirm').close()
  clearMessages()
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
  if (/^\.+$/.test(user)) { // browsers remove these from a path
    show('start')
    return showProblem(new Problem('invalid_user', { detail: 'The name ends with a dot.' }))
  }
  show('loading')
  await load()
  if (stopped && user === name && $('message').hidden) note(stopped)
}

$('choose').addEventListener('submit', async (event) => {
  event.preventDefault()
  const name = $('name').value.trim()
  if (!name) return showProblem(new Problem('invalid_user', { detail: 'The name is empty.' }))
  await choose(name)
  if ($('message').hidden && view() !== 'preview') $('stage').focus() // screen readers read its name
})

addEventListener('popstate', () => { // back or forward
  if (about && !token && view() !== 'signed-out') choose(new URLSearchParams(location.search).get('user') ?? '', { push: false })
})

// ---- Choosing a picture, and uploading it

// previewFile validates the chosen files and displays the first as a preview.
function previewFile(files) {
  if (!about || view() === 'uploading' || $('confirm').open) return
  const file = files[0]
  if (!mayChange()) return showProblem(new Problem('unauthenticated'))
  if (view() === 'loading') { // wait until the current picture is known
    const of = user
    const waited = loaded
    return waited.then(() => user === of && (loaded !== waited || ['empty', 'picture'].includes(view())) && previewFile(files))
  }
  if (!user || !['empty', 'picture', 'preview'].includes(view())) return showProblem(new Problem('no_name'))
  if (files.length > 1) return showProblem(new Problem('several'))
  if (file.size > maxSize()) return showProblem(new Problem('too_large', { detail: `${file.name} is ${formatBytes(file.size)}.` }))
  if (file.size === 0) return showProblem(new Problem('empty'))
  if (file.type && !about.picture_types.includes(file.type)) return showProblem(new Problem('unsupported_media_type', { detail: `${file.name} is ${file.type}.` }))
  clearMessages()
  loading.abort() // its response would replace the preview
  upload = new Upload(file)
  if (file.size > maxAutoShow) showImage('', '', 'Too large for a preview. You can still upload it.')
  else showImage(URL.createObjectURL(file), `Preview of ${file.name}`)
  $('facts-name').textContent = file.name
  $('facts').textContent = formatBytes(file.size)
  show('preview')
  $('upload').focus()
}

const maxSize = () => Math.max(about.max_picture_size, about.max_direct_size)

$('file').addEventListener('change', () => {
  const files = [...$('file').files]
  $('file').value = '' // so that the same file can be chosen again
  if (files.length) previewFile(files)
})

const pick = () => $('file').click()
$('replace').addEventListener('click', pick)

addEventListener('paste', (event) => {
  const files = [...event.clipboardData.files]
  if (files.length) {
    event.preventDefault()
    previewFile(files)
  }
})

let dragDepth = 0 // nested elements under the dragged file
const holdsFiles = (event) => event.dataTransfer?.types.includes('Files')
function changeDragDepth(by) {
  dragDepth = Math.max(0, dragDepth + by)
  document.body.classList.toggle('over', dragDepth > 0)
}
addEventListener('dragenter', (event) => holdsFiles(event) && changeDragDepth(1))
addEventListener('dragleave', (event) => holdsFiles(event) && changeDragDepth(-1))
addEventListener('dragover', (event) => holdsFiles(event) && event.preventDefault())
addEventListener('drop', (event) => {
  if (!holdsFiles(event)) return
  event.preventDefault()
  changeDragDepth(-dragDepth)
  const files = [...event.dataTransfer.files]
  if (files.length) previewFile(files)
})

// discardUpload displays the stored picture again.
function discardUpload() {
  clearMessages()
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

$('discard').addEventListener('click', () => (upload.allSent ? leaveUpload() : discardUpload()))
$('upload').addEventListener('click', () => startUpload())

async function startUpload() {
  clearMessages()
  const mine = upload
  const { file } = mine
  const running = new AbortController()
  const { signal } = running
  mine.stop = () => running.abort()
  const begun = Date.now()
  let first // bytes sent by an earlier try
  let announced = 0 // percent, for screen readers
  const progress = (sent) => {
    if (signal.aborted) return
    first ??= sent
    const percent = Math.floor(sent / file.size * 100)
    const seconds = (Date.now() - begun) / 1000
    const left = seconds > 2 && sent > first ? ` · ${formatDuration((file.size - sent) * seconds / (sent - first))} left` : ''
    $('progress').value = percent
    mine.allSent ||= sent >= file.size // from now on it may be stored, even if the upload is canceled
    $('progress-text').textContent = sent < file.size ? `${percent} % · ${formatBytes(sent)} of ${formatBytes(file.size)}${left}` : 'Sent. Checking and storing…'
    if (percent >= announced + 25) {
      announced = percent - percent % 25
      $('said').textContent = `${announced} % sent`
    }
  }
  $('progress').value = 0
  $('progress-text').textContent = $('said').textContent = ''
  show('uploading')
  $('cancel').focus()
  let seemsStored = false // although the response was lost
  try {
    await mine.run(signal, progress)
  } catch (err) {
    if (signal.aborted) return
    mine.mayBeStored ||= mine.allSent && err.outcome === 'unknown'
    seemsStored = await checkStored(mine, err, signal)
    if (signal.aborted) return
    mine.stop = undefined
    mine.allSent = mine.mayBeStored
    if (!seemsStored) {
      if (messages[err.code]?.act === 'pick') discardUpload()
      else show('preview')
      return showProblem(err, startUpload, err.outcome === 'unknown' ? 'It is not known whether your picture was stored. ' : '')
    }
  }
  upload = undefined
  show('loading')
  await load({ before: seemsStored ? '' : 'Your picture is stored, but there is no link to it yet. ' })
  if (view() !== 'picture') return
  note(seemsStored ? 'The response was lost, but this picture is stored now. Here is the link to share.' : 'Stored. Here is the link to share.')
  $('copy').focus()
}

// checkStored gets the stored picture after a failed upload. It returns whether that seems to be the uploaded one: browsers repeat
// requests without a response, and then report the response to the second request. If another upload was faster, or storage has
// damaged the picture, the next try replaces that picture.
async function checkStored(mine, { code, outcome }, signal) {
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
  if (faster || damaged) { // the message says so
    picture = there
    mine.seen = there?.etag
  }
  return !damaged && Boolean(there) && there.etag !== seen && there.size === mine.file.size
}

// leaveUpload displays the stored picture after the cancellation of an upload that may still be stored.
async function leaveUpload() {
  const of = user
  clearMessages()
  upload = undefined
  show('loading')
  $('stage').focus()
  await load()
  if (user === of && ['picture', 'empty'].includes(view()) && $('message').hidden) note('The whole picture had been sent and may still be stored. This is the current state.')
}

$('cancel').addEventListener('click', () => {
  upload.stop()
  if (upload.allSent) return leaveUpload()
  discardUpload()
  note(picture ? 'Canceled. The picture is unchanged.' : 'Canceled. Nothing was stored.')
})

addEventListener('beforeunload', (event) => view() === 'uploading' && event.preventDefault())

// ---- The signed URL

$('copy').addEventListener('click', async () => {
  try {
    await navigator.clipboard.writeText($('link').value)
  } catch { // not permitted, or the page is not on HTTPS
    $('link').select()
    if (!document.execCommand('copy')) return note('The link is selected: copy it with Ctrl+C.')
    $('copy').focus()
  }
  note('Copied.')
})

$('link').addEventListener('focus', () => $('link').select())

async function renewLink() {
  clearMessages()
  loading.abort()
  loading = new AbortController()
  try {
    picture = await current(loading.signal)
    showPicture()
  } catch (err) {
    if (err.code === 'not_found') return load()
    return showProblem(err, renewLink)
  }
  note('Here is a new link.')
}

$('renew').addEventListener('click', async () => {
  await renewLink()
  if (view() === 'picture' && $('message').hidden) $('copy').focus()
})

$('ttl').addEventListener('change', () => {
  ttl = Number($('ttl').value)
  renewLink()
})

$('download').addEventListener('click', async function download() {
  clearMessages()
  const of = user
  try {
    const { picture_url: url } = await callAPI('GET', catPath(of), { query: { download: of } })
    if (user === of && view() === 'picture') Object.assign(document.createElement('a'), { href: url, download: '' }).click()
  } catch (err) {
    if (user !== of || view() !== 'picture') return
    if (err.code === 'not_found') return load()
    showProblem(err, download)
  }
})

// ---- Deleting

let deleteETag // ETag of the picture in the confirmation dialog

function confirmDelete() {
  deleteETag = picture.etag
  $('confirm-title').textContent = `Delete ${user}’s cat?`
  $('confirm').showModal()
}

$('delete').addEventListener('click', confirmDelete)
$('confirm-keep').addEventListener('click', () => $('confirm').close())
$('confirm').addEventListener('close', () => view() === 'picture' && $('delete').focus())

async function deletePicture() {
  $('confirm').close()
  clearMessages()
  loading.abort()
  loading = new AbortController()
  const { signal } = loading
  show('loading')
  $('stage').focus()
  try {
    await write(callAPI('DELETE', catPath(user), { headers: { 'If-Match': deleteETag } })) // not aborted by navigation
  } catch (err) {
    if (signal.aborted) return
    if (err.outcome === 'unknown') {
      const of = user
      const before = 'It is not known whether the picture was deleted. '
      await load({ before })
      if (user !== of || !['empty', 'picture'].includes(view())) return
      if (view() === 'picture') return showProblem(err, confirmDelete, `${before}This is the current picture. `)
      note('The response was lost, but there is no picture now.')
      return $('file').focus()
    }
    if (err.code === 'precondition_failed') {
      await load()
      return view() === 'picture' && showProblem(new Problem('another'), confirmDelete)
    }
    if (err.code !== 'not_found') {
      showPicture()
      return showProblem(err, confirmDelete)
    }
  }
  if (signal.aborted) return // another user was opened
  picture = undefined
  showImage('', '')
  show('empty')
  note('Deleted.')
  $('file').focus()
}

$('confirm-delete').addEventListener('click', () => { loaded = deletePicture() })

// ---- Error messages

// messages has the message and the action of each error code: retry, pick another picture, choose another name, sign in, or reload
// the page.
const busy = { title: 'The service is not ready', text: 'It is busy or starting. Try again in a moment.', act: 'retry' }
const broken = { title: 'Something went wrong', text: 'Try again. If the problem persists, contact the operator of this service.', act: 'retry' }
const messages = {
  offline: { title: 'You are offline', text: 'Try again when you have a connection.', act: 'retry' },
  unreachable: { title: 'The service cannot be reached', text: 'Check your connection and try again.', act: 'retry' },
  broke_off: { title: 'The connection was lost', text: 'Check your connection and try again.', act: 'retry' },
  storage_refused: { title: 'Storage rejected the picture', text: 'Try again. If the problem persists, contact the operator of this service.', act: 'retry' },
  damaged: { title: 'The stored picture is damaged', text: 'Storage stored other bytes than were sent. Try again to replace them.', act: 'retry' },
  strange: { ...broken, title: 'The response is not from this service' },
  incomplete: { title: 'The picture did not arrive completely', text: 'Nothing was stored. Try again.', act: 'retry' },
  stalled: { title: 'The connection is too slow', text: 'Nothing was stored. Try again, with a better connection if you can.', act: 'retry' },
  digest_mismatch: { title: 'The picture was changed during the upload', text: 'Nothing was stored. Try again.', act: 'retry' },
  no_such_upload: { title: 'The upload took too long', text: 'The upload has expired. Try again from the start.', act: 'retry' },
  too_large: { title: 'This picture is too large', text: () => `The maximum is ${formatBytes(maxSize())} and ${Math.floor(about.max_pixels / 1e6)} million pixels. Save it smaller, or choose another one.`, act: 'pick' },
  unsupported_media_type: { title: 'This type of file is not accepted', text: () => `Accepted types: ${typeNames()}. Choose another file, or convert it.`, act: 'pick' },
  empty: { title: 'This file is empty', text: 'Choose another file.', act: 'pick' },
  several: { title: 'One picture at a time', text: 'A name has one picture. Choose one file.', act: 'pick' },
  no_name: { title: 'Whose cat is it?', text: 'Choose a name first, then the picture.', act: 'name' },
  invalid_user: { title: 'This name cannot be used', text: 'Choose another one: not too long, without slashes, and without a dot at the end.', act: 'name' },
  conflict: { title: 'Another upload was faster', text: 'Another picture was stored under this name at the same time. Try again to replace it.', act: 'retry' },
  archived: { title: 'This picture is archived', text: 'It is in the archive tier of storage and cannot be changed. Ask the operator of this service to rehydrate it, or choose another name.', act: 'name' },
  immutable: { title: 'This picture is protected', text: 'A policy of storage does not allow changes. Ask the operator of this service, or choose another name.', act: 'name' },
  leased: { title: 'This picture is locked', text: 'A program holds a lease on it. Try again later, or ask the operator of this service.', act: 'retry' },
  rejected_by_storage: { title: 'Storage does not allow this', text: 'Ask the operator of this service: its log has the reason.', act: 'retry' },
  precondition_failed: { title: 'The picture has changed', text: 'Someone else stored or deleted a picture under this name. Try again to store yours.', act: 'retry' },
  another: { title: 'The picture has changed', text: 'Someone else stored this picture under the name. Nothing was deleted.', act: 'retry' },
  rate_limited: { title: 'Too many requests', text: 'The service limits the requests of each client. Wait a moment and try again.', act: 'retry' },
  unauthenticated: { title: 'You are not signed in', text: 'Sign in and try again.', act: 'sign-in' },
  sign_in_ended: { title: 'Your sign-in has ended', text: 'Sign in again to continue. The stored picture is unchanged.', act: 'sign-in' },
  forbidden: { title: 'This is not your picture', text: 'Your account may not do this.', act: 'sign-in' },
  cross_origin: { title: 'The service rejects requests of this page', text: 'Open the page at its own address.', act: 'reload' },
  issuer_unavailable: { title: 'Your sign-in cannot be verified at the moment', text: 'Try again in a moment.', act: 'retry' },
  storage_unavailable: { title: 'Storage does not respond', text: 'Try again in a moment.', act: 'retry' },
  throttled: busy, overloaded: busy, signer_unavailable: busy,
  sign_in_stale: { title: 'This sign-in was not started here', text: 'It has expired or was started in another tab. Sign in again.', act: 'sign-in' },
  sign_in_refused: { title: 'You were not signed in', text: 'The sign-in service rejected the sign-in. Try again.', act: 'sign-in' },
  sign_in_unreachable: { title: 'The sign-in service cannot be reached', text: 'Try again in a moment. If the problem persists, contact the operator of this service.', act: 'sign-in' },
  sign_in_blocked: { title: 'Sign-in needs site data', text: 'This browser stores no site data for this page. Allow it and sign in again.', act: 'sign-in' },
  sign_in_insecure: { title: 'Sign-in needs HTTPS', text: 'Open this page at an address that begins with https.', act: 'none' },
}
const labels = { retry: 'Try again', pick: 'Choose another picture', name: 'Choose a name', 'sign-in': 'Sign in', reload: 'Reload the page' }

let retryAt = 0
let action = () => {}

// showProblem displays the message of err, after the text before, and its action. again repeats the failed action.
function showProblem(err, again, before = '') {
  if (err.name === 'AbortError') return // canceled by the user
  if (!(err instanceof Problem)) {
    console.error(err)
    err = new Problem('internal')
  }
  if (err.code === 'unauthenticated' && token) signOut()
  const known = messages[err.code] ?? broken
  const doing = known.act === 'retry' && !again ? 'reload' : known.act === 'sign-in' && !about?.sign_in ? 'none' : known.act
  note('')
  $('message-title').textContent = known.title
  $('message-text').textContent = before + (typeof known.text === 'function' ? known.text() : known.text)
  $('message-detail').textContent = err.detail + (err.requestId && known === broken ? ` Request ID: ${err.requestId}.` : '')
  action = { retry: again, pick, name: () => $('name').focus(), 'sign-in': signIn, reload: () => location.reload(), none: () => {} }[doing]
  $('message-action').hidden = doing === 'none'
  $('message-action').dataset.label = labels[doing] ?? ''
  retryAt = doing === 'retry' || doing === 'reload' ? Date.now() + err.retryAfter * 1000 : 0
  $('message-close').hidden = view() === 'start' && $('choose').hidden // there is no other control
  $('message').hidden = false
  tick()
  if (doing === 'none') $('message').focus()
  else $('message-action').focus()
}

// clearMessages hides all messages.
function clearMessages() {
  $('message').hidden = true
  $('session').hidden = true
  note('')
}

$('message-action').addEventListener('click', async () => {
  if ($('message-action').ariaDisabled === 'true') return
  if (action !== pick) clearMessages()
  await action()
  if (document.activeElement === document.body) $($('stage').checkVisibility() ? 'stage' : 'title').focus()
})

$('message-close').addEventListener('click', () => {
  clearMessages()
  const next = { preview: ['upload'], picture: ['copy', 'renew'], empty: ['file'] }[view()] ?? []
  $(next.find((id) => $(id).checkVisibility()) ?? 'title').focus()
})

// ---- Signing in: authorization code with PKCE, as a public client

const base64url = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '')
const random = () => base64url(crypto.getRandomValues(new Uint8Array(32)))
const redirectURI = () => `${location.origin}/`

// claimsOf returns the claims of a token, which only the service verifies, and undefined if it is not a JWT.
function claimsOf(jwt) {
  try {
    const part = jwt.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (c) => c.charCodeAt(0))))
  } catch {
    return undefined
  }
}

// callIssuer returns the JSON of a response of the issuer.
async function callIssuer(url, form) {
  let response
  try {
    const to = new URL(url)
    if (to.protocol !== 'https:') throw new TypeError(`${to.origin} is not HTTPS`)
    response = await fetch(to, { method: form ? 'POST' : 'GET', body: form, credentials: 'omit', cache: 'no-store' })
  } catch {
    throw new Problem('sign_in_unreachable')
  }
  const body = await response.json().catch(() => ({}))
  if (!response.ok) throw new Problem('sign_in_refused', { detail: `It says: ${body.error_description ?? body.error ?? `HTTP status ${response.status}`}.` })
  return body
}

async function discover() {
  const { issuer, discovery_url } = about.sign_in
  const found = await callIssuer(discovery_url)
  if (found.issuer !== issuer) throw new Problem('sign_in_refused', { detail: 'Its configuration has another issuer.' })
  return found
}

async function signIn() {
  clearMessages()
  try {
    if (!crypto.subtle) throw new Problem('sign_in_insecure')
    const { client_id, scope } = about.sign_in
    const { authorization_endpoint: endpoint } = await discover()
    const saved = { verifier: random(), state: random(), nonce: random() }
    const challenge = base64url(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(saved.verifier)))
    const to = new URL(endpoint)
    if (to.protocol !== 'https:') throw new Problem('sign_in_refused', { detail: 'Its address does not begin with https.' })
    for (const [name, value] of Object.entries({
      response_type: 'code', client_id, scope, redirect_uri: redirectURI(), state: saved.state, nonce: saved.nonce, code_challenge: challenge, code_challenge_method: 'S256',
    })) to.searchParams.set(name, value)
    try {
      sessionStorage.setItem(signInKey, JSON.stringify(saved))
    } catch {
      throw new Problem('sign_in_blocked')
    }
    location.assign(to)
  } catch (err) {
    showProblem(err, signIn)
  }
}

for (const id of ['sign-in', 'sign-in-top']) $(id).addEventListener('click', signIn)

// finishSignIn exchanges the code in params, the query of the redirect from the issuer, for a token.
async function finishSignIn(params, saved) {
  const { issuer, client_id, user_claim } = about.sign_in
  if (!saved || params.get('state') !== saved.state || (params.get('iss') ?? issuer) !== issuer) throw new Problem('sign_in_stale')
  if (params.get('error')) throw new Problem('sign_in_refused', { detail: `It says: ${params.get('error_description') ?? params.get('error')}.` })
  const { token_endpoint: endpoint, end_session_endpoint: endSession } = await discover()
  const got = await callIssuer(endpoint, new URLSearchParams({
    grant_type: 'authorization_code', code: params.get('code'), redirect_uri: redirectURI(), client_id, code_verifier: saved.verifier,
  }))
  const id = claimsOf(got.id_token ?? '')
  if (id?.nonce !== saved.nonce || id.iss !== issuer || ![id.aud].flat().includes(client_id)) throw new Problem('sign_in_stale')
  const name = claimsOf(got.access_token ?? '')?.[user_claim]
  if (typeof name !== 'string' || !name) throw new Problem('sign_in_refused', { detail: `The access token has no claim ${user_claim}.` })
  token = { value: got.access_token, user: name, ends: Date.now() + (Number(got.expires_in) || 300) * 1000, endSession }
}

// signOut removes the token and cancels the user's requests.
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
  clearMessages()
  show(about.read_access === 'anyone' ? 'start' : 'signed-out')
}

$('sign-out').addEventListener('click', () => {
  const { endSession } = token
  signOut()
  note('Signed out of this page.')
  showSession(endSession)
  $('title').focus()
})

// showSession displays that the session at the issuer may still be open, with a link to the issuer's logout page if it has one
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

// tick updates the remaining times of the signed URL and of the retry button, and ends an expired sign-in.
function tick() {
  if (token && Date.now() > token.ends && view() !== 'uploading') {
    signOut()
    showProblem(new Problem('sign_in_ended'))
  }
  if (!$('message').hidden) {
    const wait = Math.ceil((retryAt - Date.now()) / 1000)
    const button = $('message-action')
    const label = wait > 0 ? `${button.dataset.label} in ${formatDuration(wait)}` : button.dataset.label
    if (button.textContent !== label) button.textContent = label
    if (button.ariaDisabled === 'true' && wait <= 0) note('')
    button.ariaDisabled = String(wait > 0)
  }
  if (view() !== 'picture' || !picture) return
  const left = Math.ceil((Date.parse(picture.expires_at) - skew - Date.now()) / 1000)
  const ended = left <= 0
  $('left').textContent = ended ? 'Expired' : `Expires in ${formatDuration(left)}`
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

// formatDuration formats seconds with the two largest units.
function formatDuration(seconds, inWords = false) {
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

function formatBytes(n) {
  const names = ['bytes', 'KB', 'MB', 'GB', 'TB']
  let i = 0
  for (; n >= 1000 && i < names.length - 1; i++) n /= 1024
  return `${n.toLocaleString('en', { maximumSignificantDigits: 3 })} ${names[i]}`
}

function typeNames() {
  const names = about.picture_types.map((type) => ({ 'image/jpeg': 'JPEG', 'image/webp': 'WebP' })[type] ?? type.replace(/^image\/|-sequence$/g, '').toUpperCase())
  return new Intl.ListFormat('en', { type: 'disjunction' }).format(new Set(names))
}

// ---- Start

async function start() {
  const params = new URLSearchParams(location.search)
  let saved
  try {
    saved = JSON.parse(sessionStorage.getItem(signInKey))
    sessionStorage.removeItem(signInKey)
  } catch { /* site data is blocked, so there is no sign-in */ }
  const fromIssuer = params.has('state') && (params.has('code') || params.has('error'))
  if (fromIssuer) history.replaceState(null, '', '/') // the code must not be in the history
  setInterval(tick, 500)
  try {
    about = await callAPI('GET', '/about')
  } catch (err) {
    show('start')
    $('choose').hidden = true
    return showProblem(err) // a reload also gets a policy with the storage origin
  }
  ttl = about.link_ttl_seconds
  const ttls = new Set([60, 600, 3600, 6 * 3600, 86400, 3 * 86400, about.link_max_ttl_seconds].filter((s) => s <= about.link_max_ttl_seconds).concat(ttl))
  $('ttl').replaceChildren(...[...ttls].sort((a, b) => a - b).map((s) => new Option(formatDuration(s, true), s, s === ttl, s === ttl)))
  $('file').accept = about.picture_types.join(',')
  $('limits').textContent = `${typeNames()}, up to ${formatBytes(maxSize())}`
  if (about.read_access) $('name-hint').textContent = 'Anyone can see the picture. Signed-in users can change their own.'
  if (about.read_access && !about.sign_in) {
    $('sign-in').hidden = true
    $('sign-in-title').textContent = 'This page cannot sign you in'
    $('sign-in-text').textContent = 'Authentication is on, but this page has no sign-in. Programs can use the API with a token.'
  }
  if (fromIssuer && about.sign_in) {
    try {
      await finishSignIn(params, saved)
    } catch (err) {
      signOut()
      return showProblem(err)
    }
    $('who-name').textContent = token.user
    $('who').hidden = false
    return choose(token.user)
  }
  if (about.read_access && about.read_access !== 'anyone') return show('signed-out')
  return choose(params.get('user') ?? '', { push: false })
}

start()
