package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// result is one row of the table.
type result struct {
	What     string
	Measured string
	Against  string  // the yardstick's measurement
	Value    float64 // the figure that the bar applies to
	Bar      string
	Verdict  string // met, missed, no bar, or skipped and why

	bar float64
}

const (
	met    = "met"
	missed = "MISSED"
	noBar  = "no bar"
)

func (r result) atLeast(value, bar float64, unit string) result {
	return r.judged(value, bar, value >= bar, "≥", unit)
}

func (r result) atMost(value, bar float64, unit string) result {
	return r.judged(value, bar, value <= bar, "≤", unit)
}

func (r result) exactly(value, bar float64) result {
	r = r.judged(value, bar, value == bar, "=", "")
	r.bar = 0 // an exact figure is never near
	return r
}

func (r result) judged(value, bar float64, ok bool, relation, unit string) result {
	r.Value, r.bar, r.Bar, r.Verdict = value, bar, fmt.Sprintf("%s %g%s", relation, bar, unit), missed
	if ok {
		r.Verdict = met
	}
	return r
}

// near reports whether the bar is missed by less than 5 %.
func (r result) near() bool {
	return r.Verdict == missed && math.Abs(r.Value-r.bar) < 0.05*r.bar
}

// medians returns the result with the median value of each row.
func medians(runs [][]result) []result {
	rows := slices.Clone(runs[0])
	for i := range rows {
		var same []result
		for _, run := range runs {
			same = append(same, run[i])
		}
		slices.SortFunc(same, func(a, b result) int { return cmp.Compare(a.Value, b.Value) })
		rows[i] = same[len(same)/2]
	}
	return rows
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

func perSecond(rate float64) string { return fmt.Sprintf("%.0f/s", rate) }

func mibPerSecond(rate float64) string { return fmt.Sprintf("%.0f MiB/s", rate) }

func millis(ms float64) string { return fmt.Sprintf("%.3g ms", ms) }
