package faults

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

var update = flag.Bool("update", false, "write docs/faults.md from what the faults were seen to do")

// faultRows are the rows of docs/faults.md, in their order.
var faultRows = []string{
	"storage is down: connections are refused",
	"storage is down when the signer starts",
	"storage never answers",
	"storage is slow: a second more for each answer",
	"the way to storage is narrow: 2 MB/s",
	"connections to storage break amid a body",
	"storage's certificate is not to be trusted",
	"storage throttles: 503, Retry-After 1",
	"storage throttles for long: 503, Retry-After 120",
	"storage throttles: 429",
	"storage is broken: 500",
	"storage refuses the access token: 401",
	"the identity has lost its role on the container: 403",
	"the identity has lost its role on the account: no key",
	"the delegation keys were revoked",
	"links of a new key are refused too",
	"the token issuer is down",
	"the token issuer is slow: two seconds more",
	"the token issuer's certificate is not to be trusted",
	"the token issuer never answers a signer that starts",
	"the federated token has expired",
	"the federated token is missing",
	"our clock is 10 minutes ahead",
	"our clock is 10 minutes behind",
	"no file descriptors are left in the signer",
	"no file descriptors are left in the frontend",
	"the disk is full: the local stand cannot keep a log",
	"the disk is full: the federated token cannot be rotated",
}

// faultRow is what a fault was seen to do: the columns of docs/faults.md, of which
// the last is as measured.
type faultRow struct{ client, log, recovered string }

var (
	faultsMu   sync.Mutex
	faultsSeen = map[string]faultRow{}
)

// faultTable reads the rows of docs/faults.md, and the text around them.
func faultTable() (rows map[string]faultRow, path, before, after string, err error) {
	path = harness.Root("docs", "faults.md")
	b, err := os.ReadFile(path)
	rows = map[string]faultRow{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		switch {
		case !strings.HasPrefix(line, "|") && len(rows) == 0:
			before += line
		case !strings.HasPrefix(line, "|"):
			after += line
		case len(cells) == 4:
			rows[strings.TrimPrefix(cells[0], "| ")] = faultRow{cells[1], cells[2], strings.TrimSuffix(cells[3], " |")}
		}
	}
	return rows, path, before, after, err
}

// seen compares what a fault did with its row in docs/faults.md, unless that is to
// be written.
func seen(t *testing.T, name string, row faultRow) {
	t.Helper()
	if t.Failed() {
		return
	}
	faultsMu.Lock()
	faultsSeen[name] = row
	faultsMu.Unlock()
	t.Logf("%s: %+v", name, row)
	if !slices.Contains(faultRows, name) {
		t.Errorf("%q is not in faultRows", name)
	}
	if *update {
		return
	}
	rows, _, _, _, err := faultTable()
	if err != nil {
		t.Fatal(err)
	}
	if want := rows[name]; want.client != row.client || want.log != row.log {
		t.Errorf("docs/faults.md says of %q\n%s | %s\nand it was\n%s | %s\n(make faults writes it anew)", name, want.client, want.log, row.client, row.log)
	}
}

// endFaults writes docs/faults.md if that was asked for. Otherwise it returns an
// error when the table has other rows than the tests.
func endFaults() error {
	rows, path, before, after, err := faultTable()
	if err != nil {
		return err
	}
	if !*update {
		for name := range rows {
			if name != "fault" && name != "---" && !slices.Contains(faultRows, name) {
				return fmt.Errorf("no test is about the row %q of docs/faults.md", name)
			}
		}
		for _, name := range faultRows {
			if _, ok := rows[name]; !ok {
				return fmt.Errorf("docs/faults.md has no row %q; make faults writes it", name)
			}
		}
		return nil
	}
	maps.Copy(rows, faultsSeen)
	var b strings.Builder
	b.WriteString(before + "| fault | what the client sees | what the log says | recovers after |\n| --- | --- | --- | --- |\n")
	for _, name := range faultRows {
		row := rows[name]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, row.client, row.log, row.recovered)
	}
	return os.WriteFile(path, []byte(b.String()+after), 0o644)
}

// rounded is a measured time as the table has it.
func rounded(d time.Duration) string {
	if d < 100*time.Millisecond {
		return "at once"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
