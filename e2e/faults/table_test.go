package faults

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

var update = flag.Bool("update", false, "write the table of docs/faults.md from the results of the tests")

// row is a row of the table, without the fault. The tests compare all but recovered, which is measured.
type row struct{ client, log, recovered string }

var (
	tableMu sync.Mutex
	results = map[string]*row{} // by the fault; nil until its test has succeeded
)

// begin announces the test of a fault, and end reports its result. end fails the test if docs/faults.md has another result.
func begin(fault string) {
	tableMu.Lock()
	defer tableMu.Unlock()
	results[fault] = nil
}

func end(t *testing.T, fault string, got row) {
	t.Helper()
	if t.Failed() {
		return
	}
	tableMu.Lock()
	results[fault] = &got
	tableMu.Unlock()
	_, rows, err := documented()
	if err != nil {
		t.Fatal(err)
	}
	if want := rows[fault]; !*update && (want.client != got.client || want.log != got.log) {
		diff := cmp.Diff(want, got, cmp.AllowUnexported(row{}))
		t.Errorf("%s (-docs/faults.md +result; make faults writes the table):\n%s", fault, diff)
	}
}

// documented returns the rows of docs/faults.md by the fault, and the text before the table.
func documented() (text string, rows map[string]row, err error) {
	b, err := os.ReadFile(harness.Root("docs", "faults.md"))
	text, table, _ := strings.Cut(string(b), "\n| ")
	_, table, _ = strings.Cut(table, "| --- |\n")
	rows = map[string]row{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(strings.Trim(line, "| \n"), " | "); len(cells) == 4 {
			rows[cells[0]] = row{cells[1], cells[2], cells[3]}
		}
	}
	return text, rows, err
}

// finishTable writes the table if -update is set. Otherwise it returns an error if docs/faults.md has a row without a test.
func finishTable() error {
	text, rows, err := documented()
	if err != nil {
		return err
	}
	if *update {
		var b strings.Builder
		b.WriteString(text + "\n| fault | responses | log | recovery |\n| --- | --- | --- | --- |\n")
		for _, fault := range slices.Sorted(maps.Keys(results)) {
			r := results[fault]
			if r == nil {
				return errors.New("docs/faults.md was not written: a test has failed")
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", fault, r.client, r.log, r.recovered)
		}
		return os.WriteFile(harness.Root("docs", "faults.md"), []byte(b.String()), 0o644)
	}
	if len(results) == 0 || flag.Lookup("test.run").Value.String() != "" || flag.Lookup("test.skip").Value.String() != "" {
		return nil
	}
	for fault := range rows {
		if _, ok := results[fault]; !ok {
			return fmt.Errorf("docs/faults.md has the row %q, which no test checks; make faults writes the table", fault)
		}
	}
	return nil
}

func rounded(d time.Duration) string {
	if d < 100*time.Millisecond {
		return "at once"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
