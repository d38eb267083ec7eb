// Package faults tests faults of storage, the network, the token issuer and the machine. docs/faults.md has the expected results.
package faults

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

var update = flag.Bool("update", false, "write the measured times of recovery into docs/faults.md")

func TestMain(m *testing.M) { os.Exit(harness.Main(m, finishTable)) }

var (
	recoveriesMu sync.Mutex
	recoveries   = map[string]string{} // by the fault
)

// measure records the time of the recovery from a fault.
func measure(fault string, took time.Duration) {
	recoveriesMu.Lock()
	defer recoveriesMu.Unlock()
	recoveries[fault] = "at once"
	if took >= 100*time.Millisecond {
		recoveries[fault] = fmt.Sprintf("%.1f s", took.Seconds())
	}
}

// table calls f with the cells of each row of the table in docs/faults.md, and returns the page with the cells that f returns.
func table(f func(cells []string) []string) (string, error) {
	page, err := os.ReadFile(harness.Root("docs", "faults.md"))
	text, rows, _ := strings.Cut(string(page), "\n| --- | --- | --- | --- |\n")
	text += "\n| --- | --- | --- | --- |\n"
	for line := range strings.Lines(rows) {
		text += "| " + strings.Join(f(strings.Split(strings.Trim(line, "| \n"), " | ")), " | ") + " |\n"
	}
	return text, err
}

// finishTable writes the measured times if -update is set. It returns an error if a row has no test.
func finishTable() error {
	var untested []string
	text, err := table(func(cells []string) []string {
		if took := recoveries[cells[0]]; took != "" {
			return append(cells[:3], took)
		}
		untested = append(untested, cells[0])
		return cells
	})
	if *update && err == nil {
		err = os.WriteFile(harness.Root("docs", "faults.md"), []byte(text), 0o644)
	}
	all := len(recoveries) > 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == ""
	if all && untested != nil {
		return fmt.Errorf("no test has measured the recovery from these faults of docs/faults.md: %q", untested)
	}
	return err
}

// expectation is a row of the table.
type expectation struct {
	responses, log string
	limit          time.Duration // of the time to a response
}

// expected returns the row of a fault.
func expected(t *testing.T, fault string) (want expectation) {
	t.Helper()
	_, err := table(func(cells []string) []string {
		if cells[0] == fault {
			want = expectation{cells[1], cells[2], 30 * time.Second}
		}
		return cells
	})
	if err != nil || want.log == "" {
		t.Fatalf("docs/faults.md has no row for the fault %q: %v", fault, err)
	}
	if m := regexp.MustCompile(`within (\d+) s$`).FindStringSubmatch(want.responses); m != nil {
		seconds, _ := strconv.Atoi(m[1])
		want.responses, want.limit = strings.TrimSuffix(want.responses, "; "+m[0]), time.Duration(seconds)*time.Second
	}
	return want
}

// findLog fails the test unless the log has the expected line. Without one, all lines must have the level INFO.
func (want expectation) findLog(t *testing.T, log *stack.Log, mark int64) {
	t.Helper()
	if m := regexp.MustCompile("^(WARN|ERROR) `(.*)`(?:: (.*))?$").FindStringSubmatch(want.log); m != nil {
		parts := append(strings.Split(m[3], " … "), `"level":"`+m[1]+`"`, `"msg":"`+m[2]+`"`)
		harness.WaitForLog(t, log, mark, parts...)
		return
	}
	lines, err := log.Since(mark)
	if err != nil {
		t.Fatal(err)
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, `"level":"INFO"`) })
	if want.log != "–" || len(lines) > 0 {
		t.Errorf("the log has %q; want %s", lines, want.log)
	}
}

// responses returns the responses as in the table. Requests with the same response are one group.
func responses(requests []*request) string {
	var order, cells []string
	names := map[string][]string{}
	for _, r := range requests {
		if names[r.response] == nil {
			order = append(order, r.response)
		}
		names[r.response] = append(names[r.response], r.name)
	}
	for _, response := range order {
		cells = append(cells, strings.Join(names[response], ", ")+": "+response)
	}
	if len(order) == 1 {
		return strings.Replace(order[0], "success", "every request succeeds", 1)
	}
	return strings.Join(cells, "; ")
}
