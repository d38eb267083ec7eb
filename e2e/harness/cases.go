package harness

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var repeated = regexp.MustCompile(`\{([^{}*]+)\*(\d+)\}`)

// Repeat returns text, in which {x*5} stands for xxxxx.
func Repeat(text string) string {
	return repeated.ReplaceAllStringFunc(text, func(s string) string {
		m := repeated.FindStringSubmatch(s)
		n, _ := strconv.Atoi(m[2])
		return strings.Repeat(m[1], n)
	})
}

// Table returns the lines of a file in testdata, split at tabs or " | ". A field is the content of a Go string literal, in which {x*5}
// stands for xxxxx, and each name in macros for its value. Lines that begin with # are comments.
func Table(t *testing.T, name string, macros ...string) (rows [][]string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	replacer := strings.NewReplacer(macros...)
	for line := range strings.Lines(string(content)) {
		if line = strings.TrimSuffix(line, "\n"); line == "" || line[0] == '#' {
			continue
		}
		var row []string
		for field := range strings.SplitSeq(strings.ReplaceAll(line, " | ", "\t"), "\t") {
			text, err := strconv.Unquote(`"` + strings.ReplaceAll(field, `"`, `\"`) + `"`)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, field, err)
			}
			row = append(row, replacer.Replace(Repeat(text)))
		}
		rows = append(rows, row)
	}
	return rows
}

// Each calls f with 0 to n-1, sixteen calls at a time.
func Each(n int, f func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range 16 {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				f(int(i - 1))
			}
		})
	}
	wg.Wait()
}
