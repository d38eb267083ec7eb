package blobstore

import (
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxClockSkew is the difference between the clocks up to which they agree.
const maxClockSkew = time.Minute

// ClockFault returns an error if this machine's clock is more than a minute ahead of storage's, or, where ahead is negative,
// more than a minute behind it. The error says what the difference breaks.
func ClockFault(ahead time.Duration) error {
	switch rounded := ahead.Round(time.Second); {
	case ahead > maxClockSkew:
		return fmt.Errorf("this clock is %v ahead of storage's; from %v on storage rejects new links as not valid yet; fix: time synchronisation on this node", rounded, LinkSkew)
	case ahead < -maxClockSkew:
		return fmt.Errorf("this clock is %v behind storage's; links end that much too early, short ones at once; fix: time synchronisation on this node", -rounded)
	}
	return nil
}

// aheadOf returns how far now is ahead of date, the Date header of a response that storage sent now.
func aheadOf(now time.Time, date string) (time.Duration, error) {
	theirs, err := http.ParseTime(date)
	return now.Sub(theirs.Add(time.Second / 2)), err // the header has whole seconds, rounded down
}

// clock measures how far this machine's clock is ahead of storage's, which decides when a link begins and ends. It corrects
// nothing: the times in a link would then depend on a header that was read minutes ago, and a wrong clock breaks more than
// links.
type clock struct {
	log   *slog.Logger
	ahead prometheus.Gauge
	wrong atomic.Bool // at the last measurement
}

// compare measures the difference from date, the Date header of a response that storage sent now, and logs when the clock
// becomes wrong or right.
func (c *clock) compare(now time.Time, date string) {
	ahead, err := aheadOf(now, date)
	if err != nil {
		return
	}
	c.ahead.Set(ahead.Seconds())
	fault := ClockFault(ahead)
	wasWrong := c.wrong.Swap(fault != nil)
	switch {
	case fault != nil && !wasWrong:
		c.log.Warn("the clock is wrong", "error", fault.Error())
	case fault == nil && wasWrong:
		c.log.Info("the clock agrees with storage's again")
	}
}
