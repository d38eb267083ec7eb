package web

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestResponsesToTokensVaryByAuthorization(t *testing.T) {
	for read, varies := range map[access.ReadAccess]bool{access.Own: true, access.SignedIn: true, access.Anyone: false} {
		h, m, _ := newWebWith(t, "RATE_LIMIT=0", "OIDC_ISSUER=https://login.example.com", "READ_ACCESS="+string(read))
		m.cats["mia"] = png
		for _, method := range []string{"GET", "HEAD"} {
			for _, path := range []string{"/cat/mia", "/cat/mia/picture", "/cat/nobody/picture"} {
				for _, token := range []string{"Bearer mew", ""} {
					rec := sendWith(t, h, method, path, nil, "Authorization", token)
					if got := slices.Contains(rec.Header().Values("Vary"), "Authorization"); got != varies {
						t.Errorf("READ_ACCESS=%s, %s %s with %q: %d, Vary is %q", read, method, path, token, rec.Code, rec.Header().Values("Vary"))
					}
				}
			}
		}
	}
}

func TestWhoBringsNoTokenIsTurnedAwayBeforeAnythingIsRead(t *testing.T) {
	const issuer = "https://login.example.com"
	for _, c := range []struct {
		rules      access.Policy
		needs      string // methods that need a token
		passedOnTo string // methods whose token the signer gets
	}{
		{access.Policy{ReadAccess: access.Own}, "", ""},
		{access.Policy{Issuer: issuer, ReadAccess: access.Own}, "GET HEAD PUT POST DELETE", "GET HEAD PUT POST DELETE"},
		{access.Policy{Issuer: issuer, ReadAccess: access.SignedIn}, "GET HEAD PUT POST DELETE", "GET HEAD PUT POST DELETE"},
		{access.Policy{Issuer: issuer, ReadAccess: access.Anyone}, "PUT POST DELETE", "PUT POST DELETE"},
	} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE"} {
			for _, field := range []string{"", "Bearer mew", "bearer  mew", "Basic bWlhOm1pYQ==", "Bearer", "Bearer mew mew", "Bearer m\xffw", "mew"} {
				h, m, _ := newWebWith(t, "RATE_LIMIT=0", "OIDC_ISSUER="+c.rules.Issuer, "READ_ACCESS="+string(c.rules.ReadAccess))
				m.fail = apierror.ErrNotFound
				body := png
				if method == "POST" {
					body = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n" + png + "\r\n--b--\r\n"
				}
				read := &watched{Reader: strings.NewReader(body)}
				r := httptest.NewRequestWithContext(t.Context(), method, "/cat/mia", read)
				r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
				if field != "" {
					r.Header.Set("Authorization", field)
				}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				needed, good := strings.Contains(c.needs, method), strings.HasSuffix(field, " mew") && !strings.Contains(field, "mew mew")
				if refused := needed && !good; refused != (rec.Code == http.StatusUnauthorized) {
					t.Errorf("%+v: %s with %q: %d", c.rules, method, field, rec.Code)
				} else if refused && (read.read || !strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Bearer ")) {
					t.Errorf("%+v: %s with %q: refused, and its body was read or the header does not say how: %v", c.rules, method, field, rec.Header())
				}
				want := signerapi.Token("")
				if good && strings.Contains(c.passedOnTo, method) {
					want = "mew"
				}
				if m.token != want {
					t.Errorf("%+v: %s with %q: the signer got the token %q; want %q", c.rules, method, field, string(m.token), string(want))
				}
			}
		}
	}
}

// watched is a body that knows whether it was read.
type watched struct {
	io.Reader
	read bool
}

func (w *watched) Read(p []byte) (int, error) {
	w.read = true
	return w.Reader.Read(p)
}

func TestContractErrorsKeepTheirStatus(t *testing.T) {
	for _, err := range []*apierror.Error{apierror.ErrUnauthenticated, apierror.ErrForbidden, apierror.ErrRateLimited, apierror.ErrMisconfigured, apierror.ErrIssuerUnavailable} {
		h, m, _ := newWeb(t)
		m.fail = errors.Join(err)
		if rec := send(t, h, "GET", "/cat/mia", "", nil); rec.Code != err.Status {
			t.Errorf("%v: %d", err, rec.Code)
		}
	}
}
