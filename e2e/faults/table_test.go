// Package faults tests faults of storage, the network, the token issuer and the machine; docs/faults.md is their table.
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

func TestMain(m *testing.M) { os.Exit(harness.Main(m, finishTable)) }

// row is a row of the table, without the fault. The tests compare all but recovered, which is measured.
type row struct{ client, log, recovered string }

var (
	tableMu sync.Mutex
	results = map[string]row{} // by the fault
	broken  bool               // a test has failed
)

// end adds the result of the test of a fault to the table.
func end(t *testing.T, fault string, got row) {
	t.Helper()
	tableMu.Lock()
	defer tableMu.Unlock()
	results[fault] = got
	broken = broken || t.Failed()
}

// finishTable compares the table in docs/faults.md with the results, or writes it if -update is set and no test has failed.
func finishTable() error {
	b, err := os.ReadFile(harness.Root("docs", "faults.md"))
	if err != nil {
		return err
	}
	text, table, _ := strings.Cut(string(b), "\n| fault | responses | log | recovery |\n| --- | --- | --- | --- |\n")
	if *update && !broken {
		text += "\n| fault | responses | log | recovery |\n| --- | --- | --- | --- |\n"
		for _, fault := range slices.Sorted(maps.Keys(results)) {
			r := results[fault]
			text += fmt.Sprintf("| %s | %s | %s | %s |\n", fault, r.client, r.log, r.recovered)
		}
		return os.WriteFile(harness.Root("docs", "faults.md"), []byte(text), 0o644)
	}
	all := len(results) > 0 && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == ""
	documented := map[string]row{}
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if r, ok := results[cells[0]]; ok || all {
			documented[cells[0]] = row{cells[1], cells[2], r.recovered}
		}
	}
	if diff := cmp.Diff(documented, results, cmp.AllowUnexported(row{})); diff != "" && !broken {
		return errors.New("the results differ (-docs/faults.md +result; make faults writes the table):\n" + diff)
	}
	return nil
}

func rounded(d time.Duration) string {
	if d < 100*time.Millisecond {
		return "at once"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
