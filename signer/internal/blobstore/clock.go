package blobstore

import (
	"fmt"
	"net/http"
	"time"
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

// compareClock measures how far this machine's clock is ahead of storage's, which decides when a link begins and ends. date is
// the Date header of a response that storage sent now. compareClock logs when the clock becomes wrong or right. Nothing is
// corrected: the times in a link would then depend on a header that was read minutes ago, and a wrong clock breaks more than links.
func (s *Store) compareClock(date string) {
	ahead, err := aheadOf(s.now(), date)
	if err != nil {
		return
	}
	s.metrics.clockAhead.Set(ahead.Seconds())
	fault := ClockFault(ahead)
	wasWrong := s.clockWrong.Swap(fault != nil)
	switch {
	case fault != nil && !wasWrong:
		s.log.Warn("the clock is wrong", "error", fault.Error())
	case fault == nil && wasWrong:
		s.log.Info("the clock agrees with storage's again")
	}
}
