package stack

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// clockScript has Node.js go by a clock that is ahead of the machine's by as many
// milliseconds as the file clock beside the script says, within a moment.
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

// SetClock puts the clocks of all that the stack stands for (storage, the token
// issuers, the cluster) ahead of this machine's, which signer and frontend go by, or
// behind it when ahead is below 0. Tokens that were made before may be of no use
// then. The stack must have been made with Options.Clock.
func (s *Stack) SetClock(ahead time.Duration) error {
	name := filepath.Join(s.opts.Dir, "clock")
	if err := os.WriteFile(name+".new", []byte(strconv.FormatInt(ahead.Milliseconds(), 10)), 0o600); err != nil {
		return fmt.Errorf("setting the stack's clock: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("setting the stack's clock: %w", err)
	}
	s.ahead.Store(int64(ahead))
	time.Sleep(50 * time.Millisecond) // Azurite's script looks again by then
	return nil
}

// now is the stack's clock.
func (s *Stack) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

// clock returns the options with which Node.js goes by the stack's clock, "" for the
// machine's.
func (s *Stack) clock() (nodeOptions string, err error) {
	if !s.opts.Clock {
		return "", nil
	}
	script := filepath.Join(s.opts.Dir, "clock.js")
	if err := os.WriteFile(script, []byte(clockScript), 0o600); err != nil {
		return "", fmt.Errorf("writing the script of the stack's clock: %w", err)
	}
	return "--require=" + script, s.SetClock(0)
}
