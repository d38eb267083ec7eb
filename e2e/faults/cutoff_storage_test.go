package faults

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

// takeOver returns the connection of a request, which stays open until mend, and the bytes of the body that were not read.
func (c *cutter) takeOver(w http.ResponseWriter, r *http.Request) (*tls.Conn, io.Reader) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[userOf(r)] = append(c.open[userOf(r)], conn)
	return conn.(*tls.Conn), buffered.Reader
}

// userOf returns the user of a request to storage.
func userOf(r *http.Request) string { return strings.Split(r.URL.Path, "/")[2] }

// readShare reads a share of a body; 0 does not even send 100 Continue.
func readShare(r *http.Request, share float64) {
	if share > 0 {
		_, _ = io.CopyN(io.Discard, r.Body, int64(share*float64(r.ContentLength)))
	}
}

// answers is a fault: storage answers after a share of the body. Then it closes the connection, or keeps it open and reads nothing.
func (c *cutter) answers(status int, code string, share float64, closes bool) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		readShare(r, share)
		conn, _ := c.takeOver(w, r)
		head, text := "", "<Error><Code>"+code+"</Code></Error>"
		switch status {
		case 401:
			head = "WWW-Authenticate: " + challenge + "\r\n"
		case 503:
			head = "Retry-After: 120\r\n" // the signer does not wait for so long
		}
		if closes {
			head += "Connection: close\r\n"
		}
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 %d %s\r\nContent-Type: application/xml\r\nX-Ms-Error-Code: %s\r\nX-Ms-Request-Id: the-request-id\r\nContent-Length: %d\r\n%s\r\n%s",
			status, http.StatusText(status), code, len(text), head, text)
		if closes {
			_ = conn.CloseWrite()
			go func() { _, _ = io.Copy(io.Discard, conn.NetConn()) }() // a close with unread bytes would reset the connection
		}
	}
}

// silent is a fault: storage reads a share of the body, and then nothing more. It never answers.
func (c *cutter) silent(share float64) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		readShare(r, share)
		_, _ = c.takeOver(w, r)
	}
}

// unanswered is a fault: storage carries out the request and never answers.
func (c *cutter) unanswered(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	healthy.ServeHTTP(httptest.NewRecorder(), r)
	_, _ = c.takeOver(w, r)
}

// uninvited is no fault: storage does not ask for the body with 100 Continue, reads the body without it, and stores the picture.
func (c *cutter) uninvited(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	conn, body := c.takeOver(w, r)
	forwarded := r.Clone(r.Context())
	forwarded.Body = io.NopCloser(io.LimitReader(body, r.ContentLength))
	forwarded.Header.Del("Expect")
	recorded := httptest.NewRecorder()
	healthy.ServeHTTP(recorded, forwarded)
	recorded.Header().Set("Connection", "close")
	_ = recorded.Result().Write(conn)
	_ = conn.Close()
}

// dropped is a fault: storage receives the whole request, does not carry it out, and resets the connection.
func dropped(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	r.ContentLength = 0
	harness.Reset(w, r, nil)
}

// overtaken is a fault: storage carries out the request, and then that of another writer, and resets the connection.
func (c *cutter) overtaken(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	healthy.ServeHTTP(httptest.NewRecorder(), r)
	if err := c.store(r.Context(), userOf(r), otherContent); err != nil {
		panic(err)
	}
	r.ContentLength = 0
	harness.Reset(w, r, nil)
}

// stages are those at which storage can answer before it has read all.
func (s sending) stages() []cutoff {
	early, amid := cutoff{name: "early", share: 1, at: atData}, cutoff{name: "during the body", share: 1, at: atData}
	if s.begins < 1 {
		amid.share = 0.9 // so that the signer does not have the last byte yet
	}
	if !s.blocks {
		return []cutoff{early, amid}
	}
	return []cutoff{early, amid, {name: "at the commit", share: 1, at: func(r *http.Request) bool { return atCommit(r) && !atData(r) }}}
}

// refusals are the cutoffs by storage that answers with an error, or resets the connection.
func (c *cutter) refusals(s sending) (all []cutoff) {
	for _, stage := range s.stages() {
		share := 0.0
		if stage.name == "during the body" {
			share = 0.5
		}
		for _, answer := range []struct {
			status, told int
			stored, code string
		}{
			{401, 502, "InvalidAuthenticationInfo", "identity_unavailable"},
			{412, 412, "ConditionNotMet", "precondition_failed"},
			{503, 503, "ServerBusy", "throttled"},
		} {
			for _, closes := range []bool{true, false} {
				if !closes && stage.name != "early" {
					break
				}
				row := stage
				row.name = fmt.Sprintf("storage answers %d %s, closing %v", answer.status, stage.name, closes)
				row.fault, row.status, row.code = c.answers(answer.status, answer.stored, share, closes), answer.told, answer.code
				if answer.status == 412 {
					row.change = withCondition
				}
				all = append(all, row)
			}
		}
		row := stage
		row.name, row.fault, row.status, row.code = "storage resets "+stage.name, harness.Reset, 503, "storage_unavailable"
		if share == 0 {
			row.fault = func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				r.ContentLength = 0
				harness.Reset(w, r, nil)
			}
		}
		if s.begins == 1 || stage.name == "at the commit" {
			row.outcome = "unknown" // the request was in memory whole, and the signer does not know how much of it was received
		}
		all = append(all, row)
	}
	return append(all,
		cutoff{name: "storage sends no 100 Continue", share: 1, at: atData, fault: c.uninvited, status: 200, stored: newPicture},
		cutoff{name: "storage answers 500 early once", share: 1, at: atData, fault: harness.Once(c.answers(500, "InternalError", 0, true)), status: 200, stored: newPicture})
}

func withCondition(u harness.RawUpload, _ []byte) harness.RawUpload {
	u.Header = strings.Replace(u.Header, "\r\n", "\r\nIf-Match: *\r\n", 1)
	return u
}

// losses are the cutoffs after the last byte: storage's answer, or the request, is lost.
func (c *cutter) losses(s sending) []cutoff {
	atCommitOrHead := func(r *http.Request) bool { return atCommit(r) || r.Method == http.MethodHead }
	headFails := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Method == http.MethodHead {
			harness.Reset(w, r, nil)
		}
		harness.LoseResponse(w, r, healthy)
	}
	return []cutoff{
		{name: "answer lost", share: 1, at: atCommit, fault: harness.LoseResponse, status: 200, stored: newPicture},
		{name: "answer lost of a conditional upload", change: withCondition, share: 1, at: atCommit, fault: harness.LoseResponse, status: 200, stored: newPicture},
		{name: "answer lost, HEAD fails", share: 1, at: atCommitOrHead, fault: headFails, status: 503, code: "storage_unavailable", outcome: "unknown", stored: newPicture},
		{name: "answer lost, replaced since", share: 1, at: atCommit, fault: c.overtaken, status: 503, code: "storage_unavailable", outcome: "unknown", stored: otherPicture},
		{name: "request lost", share: 1, at: atCommit, fault: dropped, status: 503, code: "storage_unavailable", outcome: "unknown"},
	}
}

// kills are the cutoffs by the end of a process: during the body, and between the last byte and storage's answer.
func (c *cutter) kills() []cutoff {
	return []cutoff{
		{name: "signer killed during the body", killed: c.sys.Signer, share: 0.5, status: 503, code: "signer_unavailable"},
		{name: "signer killed, not stored", killed: c.sys.Signer, share: 1, at: atCommit, fault: c.silent(1), status: 503, code: "signer_unavailable", outcome: "unknown"},
		{name: "signer killed, stored", killed: c.sys.Signer, share: 1, at: atCommit, fault: c.unanswered, status: 503, code: "signer_unavailable", outcome: "unknown", stored: newPicture},
		{name: "frontend killed during the body", killed: c.sys.Frontend, share: 0.5},
		{name: "frontend killed, stored", killed: c.sys.Frontend, share: 1, at: atCommit, fault: c.unanswered, stored: newPicture},
	}
}

// TestSilentStorageKeepsOldPicture waits for the timeouts of 30 s.
func TestSilentStorageKeepsOldPicture(t *testing.T) {
	t.Parallel()
	c := newCutter(t)
	const large = 24 << 20 // more than the kernel buffers of a connection
	for name, row := range map[string]struct {
		sending, size int
		share         float64
		outcome       any
	}{
		"PUT during the body":     {putWithLength, large, 0.1, nil},
		"form during the body":    {postForm, large, 0.1, nil},
		"PUT after the last byte": {putWithLength, 1 << 20, 1, "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cut := cutoff{share: 1, at: atData, fault: c.silent(row.share), status: 503, code: "storage_unavailable", outcome: row.outcome}
			content := harness.Random(row.size, 8)
			c.run(t, sending{}, cut, strings.ReplaceAll(name, " ", "-"), harness.RawUploads(t, anyone, content)[row.sending], content)
		})
	}
}
