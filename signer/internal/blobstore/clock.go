package blobstore

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// clockWarns is from which difference of the clocks on it is told.
const clockWarns = time.Minute

// clock tells how far this machine's clock is from storage's, which decides when a
// link begins and ends. It corrects nothing: the link's times would then hang on a
// header that was read minutes ago, and a clock that is wrong breaks more than links.
type clock struct {
	log   *slog.Logger
	ahead prometheus.Gauge
	wrong bool // when last seen
}

// compare takes the Date of an answer of storage that came at now. It is called by
// one goroutine at a time.
func (c *clock) compare(now time.Time, date string) {
	theirs, err := http.ParseTime(date)
	if err != nil {
		return
	}
	ahead := now.Sub(theirs.Add(time.Second / 2)) // it is cut to whole seconds
	c.ahead.Set(ahead.Seconds())
	wrong := ahead.Abs() > clockWarns
	if wrong == c.wrong {
		return
	}
	c.wrong = wrong
	if !wrong {
		c.log.Info("the clock agrees with storage's again")
		return
	}
	err = fmt.Errorf("ours is %v behind storage's, and links end that much too early, short ones at once", -ahead.Round(time.Second))
	if ahead > 0 {
		err = fmt.Errorf("ours is %v ahead of storage's, and from %v on links are not valid yet when they are given out", ahead.Round(time.Second), LinkSkew)
	}
	c.log.Warn("the clock is wrong", "error", err.Error()+"; fix: time synchronisation on this node")
}
