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
	Against  string  // what the yardstick measured
	Value    float64 // what the bar is about
	Bar      string
	Verdict  string // met, missed, told (no bar applies), or skipped and why

	bar float64
}

const (
	met    = "met"
	missed = "MISSED"
	told   = "told"
)

func (r result) atLeast(value, bar float64, unit string) result {
	return r.judged(value, bar, value >= bar, "≥", unit)
}

func (r result) atMost(value, bar float64, unit string) result {
	return r.judged(value, bar, value <= bar, "≤", unit)
}

func (r result) exactly(value, bar float64) result {
	r = r.judged(value, bar, value == bar, "=", "")
	r.bar = 0 // never near
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

// medians returns, of each row that all runs have, the one with the median value.
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

// median of the middle two, for an even number.
func median(of []float64) float64 {
	s := slices.Sorted(slices.Values(of))
	return (s[len(s)/2] + s[(len(s)-1)/2]) / 2
}

func perSecond(rate float64) string { return fmt.Sprintf("%.0f/s", rate) }

func mibPerSecond(rate float64) string { return fmt.Sprintf("%.0f MiB/s", rate) }

func millis(ms float64) string { return fmt.Sprintf("%.3g ms", ms) }
