package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// clockScript shifts the clock of Node.js by the number of milliseconds in the file "clock" beside the script. It reads the file at most
// every 20 ms.
const clockScript = `'use strict'
const fs = require('fs'), http = require('http'), path = require('path')
const Machine = Date
let ahead = 0, read = 0
function now () {
  const t = Machine.now()
  if (t - read > 20) {
    read = t
    ahead = Number(fs.readFileSync(path.join(__dirname, 'clock'), 'utf8'))
  }
  return t + ahead
}
globalThis.Date = new Proxy(Machine, {
  apply: () => new Machine(now()).toString(),
  construct: (_, args, as) => Reflect.construct(Machine, args.length ? args : [now()], as === globalThis.Date ? Machine : as),
  get: (_, name) => name === 'now' ? now : Machine[name]
})
const writeHead = http.ServerResponse.prototype.writeHead
http.ServerResponse.prototype.writeHead = function (...args) {
  if (!this.hasHeader('Date')) this.setHeader('Date', new Date().toUTCString())
  return writeHead.apply(this, args)
}
`

// SetClock sets the clocks of storage, token issuers and cluster ahead of this machine's clock, or behind it if ahead is negative. Signer
// and frontend keep this machine's clock. Tokens that were issued before may become invalid. [Options].Clock must be set.
func (s *Stack) SetClock(ahead time.Duration) error {
	name := filepath.Join(s.opts.Dir, "clock")
	if err := os.WriteFile(name+".new", []byte(strconv.FormatInt(ahead.Milliseconds(), 10)), 0o600); err != nil {
		return fmt.Errorf("setting the stack's clock: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("setting the stack's clock: %w", err)
	}
	s.ahead.Store(int64(ahead))
	time.Sleep(50 * time.Millisecond) // until clockScript has read the file again
	return nil
}

// now returns the time of the stack's clock.
func (s *Stack) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

// clock returns the options with which Node.js uses the stack's clock, or "" if it uses the machine's.
func (s *Stack) clock() (nodeOptions string, err error) {
	if !s.opts.Clock {
		return "", nil
	}
	script := filepath.Join(s.opts.Dir, "clock.js")
	if err := os.WriteFile(script, []byte(clockScript), 0o600); err != nil {
		return "", fmt.Errorf("writing the clock script: %w", err)
	}
	return "--require=" + script, s.SetClock(0)
}
