package ops

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

// A client puts names, its token and its signed URL wherever it can. They get into no log, metric, error or response header.
func TestLogsHoldNoNamesOrSecrets(t *testing.T) {
	t.Parallel()
	const origin = "https://cats.example.com"
	p := harness.StartProvider(t, "0")
	storage := harness.NewStorageProxy(t)
	opts := harness.WithAuthentication(p.Issuer, map[string]string{
		"LOG_LEVEL": "debug", "READ_ACCESS": "signed-in", "MAX_PICTURE_SIZE": "64KiB",
	})
	opts.StorageURL, opts.FrontendEnv["CORS_ORIGINS"] = storage.URL, origin
	sys := harness.StartDirect(t, opts)
	token, picture := p.Token(t, "mia", harness.Audience), string(harness.Picture(20<<10, 'p'))
	harness.SendAs(t, token, "PUT", sys.URL+"/cat/mia", []byte(picture)).Want(t, 200)
	got := harness.SendAs(t, token, "GET", sys.URL+"/cat/mia?ttl=10m&download=Secretfile.png", nil).Want(t, 200)
	link, _ := got.Field(t, "picture_url").(string)
	u, err := url.Parse(link)
	signature := u.Query().Get("sig")
	if err != nil || signature == "" {
		t.Fatalf("the signed URL is %s: %v", link, err)
	}
	query := u.RawQuery
	secret := regexp.MustCompile(`sig=|sig%3D|` + strings.Join([]string{
		regexp.QuoteMeta(token), regexp.QuoteMeta(signature),
		regexp.QuoteMeta(url.QueryEscape(signature)), harness.JWTPrefix,
	}, "|"))
	formType, form := harness.Form(t, []byte(picture))
	named := strings.ReplaceAll(string(form), "cat.png", "Secretfile.png")
	send := func(status int, method, path, body string, header ...string) {
		t.Helper()
		all := append([]string{
			"Authorization", "Bearer " + token, "Origin", origin, "User-Agent", "sig=" + token, "Referer", link, "Cookie",
			"token=" + token, "X-Request-Id", "sig=x?" + signature,
			"Traceparent", signature, "X-Forwarded-For", link, "Forwarded", "for=" + token,
		}, header...)
		a := harness.Send(t, method, sys.URL+path, body, all...)
		if a.StatusCode != status {
			t.Errorf("%s %.80s: %d %s; want %d", method, path, a.StatusCode, a.Body, status)
		}
		if status == 307 && (!strings.Contains(a.Header.Get("Location"), "sig=") || a.Header.Get("Referrer-Policy") != "no-referrer") {
			t.Errorf("a redirect has %v", a.Header)
		}
		a.Header.Del("Location")
		if status < 400 && method != "PUT" { // the body can have a signed URL
			a.Body = nil
		}
		if s := secret.FindString(fmt.Sprint(a.Header, string(a.Body))); s != "" {
			t.Errorf("%s %.80s: %q is in %v %s", method, path, s, a.Header, a.Body)
		}
	}
	for _, name := range []string{"Purrsephone", "mia"} {
		for _, row := range harness.Table(t, "secret-requests.txt", "NAME", name, "LONGFILE", strings.Repeat("Secretfile", 30),
			"LONGQUERY", strings.Repeat(query, 30), "QUERY", query, "TOKEN", token, "SIGNATURE", signature, "LINK", link,
			"MULTIPART", formType, "FORM", named, "CUT", named[:len(named)-20], "PICTURE", picture) {
			status, own := strings.CutPrefix(row[0], "OWN ")
			if own && name != "mia" {
				status = "403"
			}
			code, err := strconv.Atoi(status)
			if err != nil {
				t.Fatal(err)
			}
			method, target, _ := strings.Cut(row[1], " ")
			row = append(row, "")
			header := []string{}
			for _, field := range row[3:] {
				if name, value, found := strings.Cut(field, ": "); found {
					header = append(header, name, value)
				}
			}
			send(code, method, target, row[2], header...)
		}
	}
	fmt.Fprint(harness.Dial(t, sys), "GET /cat/mia?"+query+" HTTP/1.1\r\nAuthorization: Bearer "+token+"\r\n : x\r\n\r\n")
	for status, faults := range map[int][]harness.Fault{
		409: {harness.Reject(409, "BlobArchived"), harness.Reject(412, "LeaseIdMissing")},
		422: {harness.Reject(400, "InvalidUri")},
		500: {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path+"?x=%zz", http.StatusTemporaryRedirect)
		}},
		502: {harness.Reject(403, "AuthorizationPermissionMismatch")},
		503: {harness.Reset, harness.Reject(503, "ServerBusy", "Retry-After", "9")},
	} {
		for _, f := range faults {
			storage.SetAll(f)
			send(status, "PUT", "/cat/mia", picture)
		}
	}
	storage.SetAll(nil)
	storage.Down()
	send(503, "GET", "/cat/mia", "")
	lines := []string{}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		lines = append(lines, strings.Split(string(harness.Do(t, "GET", base+"/metrics", "", nil).Want(t, 200).Body), "\n")...)
	}
	name := regexp.MustCompile(`Purrsephone|Secretfile|\bmia\b`)
	for _, line := range append(lines, logLines(t, sys)...) {
		if s := secret.FindString(line) + name.FindString(line); s != "" {
			t.Errorf("%q is in %.600s", s, line)
		}
	}
}
