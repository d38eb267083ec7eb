package attacks

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// behind is the request that the test sends behind each case. Its request ID shows up in the log if the frontend sees it.
const behind = "GET /service HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: behind-%03d\r\nConnection: close\r\n\r\n"

// A proxy may see one request where the frontend sees two. The frontend must see the second one only if every parser does.
func TestNoRequestHidesBehindAnother(t *testing.T) {
	t.Parallel()
	env := map[string]string{"MAX_PICTURE_SIZE": "1MiB", "STALL_TIMEOUT": "1s"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: env, SignerEnv: env})
	harness.Put(t, sys, "kept", harness.Cat)
	const picture = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR and so forth"
	const put, get = "PUT /cat/a HTTP/1.1\r\nHost: localhost\r\n", "GET /service HTTP/1.1\r\nHost: localhost\r\n"
	chunks := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(picture), picture)
	whole, all := fmt.Sprintf("Content-Length: %d\r\n", len(chunks)),
		fmt.Sprintf("Content-Length: %d\r\n", len(chunks)+len(behind)-1)
	rows := harness.Table(t, "framing.txt", "{put}", put, "{get}", get, "{picture}", picture, "{chunks}", chunks, "{chunked}",
		"Transfer-Encoding: chunked\r\n", "Content-Length: {all}\r\n", all,
		"{deletes}", strings.Repeat("DELETE /cat/kept HTTP/1.1\r\nHost: localhost\r\n\r\n", 200))
	for _, row := range harness.Table(t, "encodings.txt") {
		field := row[1] + "\r\n"
		rows = append(rows, []string{"1", put + field + "\r\n" + chunks})
		if row[0] == "ambiguous" {
			rows = append(rows, []string{"1", put + field + all + "\r\n" + chunks}, []string{"1", put + whole + field + "\r\n" + chunks})
		} else {
			rows = append(rows, []string{"1", put + field + all + "\r\n" + chunks + "{behind}" + get + "Connection: close\r\n\r\n"},
				[]string{"2", put + whole + field + "\r\n" + chunks})
		}
	}
	harness.Each(len(rows), func(i int) {
		row := append(slices.Clone(rows[i]), "")
		raw := strings.ReplaceAll(row[1]+"{behind}", "{behind}", fmt.Sprintf(behind, i))
		got := harness.ReadStatuses(t, sys, fmt.Sprintf("%.300q", row[1]), raw)
		if row[0] == "1" && len(got) > 1 && !strings.Contains(row[1], "Connection: close") &&
			!strings.HasPrefix(got[len(got)-1], "400") && !strings.HasPrefix(got[0], "100") {
			t.Errorf("%.300q: the responses are %q; want one, or 400 for the rest", row[1], got)
		}
		// The reset of the connection may overtake the response to malformed HTTP.
		status := row[2]
		if len(got) == 0 && !slices.Contains([]string{"", "400", "431"}, status) || len(got) > 0 && !strings.HasPrefix(got[0], status) {
			t.Errorf("%.300q: the responses are %q; want %s", row[1], got, status)
		}
	})
	lines, err := sys.Frontend.Log.Since(0)
	if err != nil {
		t.Fatal(err)
	}
	log := strings.Join(lines, "\n")
	for i, row := range rows {
		if seen := strings.Contains(log, fmt.Sprintf(`"behind-%03d"`, i)); seen != (row[0] == "2") {
			t.Errorf("%.300q: the request behind it was served: %v", row[1], seen)
		}
	}
	harness.WantPicture(t, sys, "kept", harness.Cat)
}
