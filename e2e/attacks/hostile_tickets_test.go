package attacks

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// tickets are for a blob that the signer names, to write, for an hour; and what was
// sent under one becomes the picture of the user that it was for, or nobody's.
func (h *hostile) tickets(t *testing.T, small string, stored func(string)) {
	ticketOf := func(user string, size int) harness.UploadSession {
		t.Helper()
		a := h.say(t, call("POST", fmt.Sprintf("/v1/uploads?user=%s&size=%d", url.QueryEscape(user), size), known, ""))
		text, _ := fieldOf(a, "upload_url").(string)
		id, _ := fieldOf(a, "id").(string)
		u, err := url.Parse(text)
		if err != nil || a.StatusCode != 200 {
			t.Fatalf("no ticket: %d %.200s, %v", a.StatusCode, a.Body, err)
		}
		query, permission := u.Query(), "c"
		if size > 64<<20 {
			permission = "w"
		}
		ends, err := time.Parse(time.RFC3339, query.Get("se"))
		switch {
		case err != nil || time.Until(ends) > time.Hour:
			t.Errorf("a ticket for %q ends at %q", user, query.Get("se"))
		case query.Get("sp") != permission || query.Get("sr") != "b" || query.Get("spr") != "https":
			t.Errorf("a ticket for %q is for sp=%q sr=%q spr=%q", user, query.Get("sp"), query.Get("sr"), query.Get("spr"))
		case u.Scheme+"://"+u.Host != harness.Stack(t).FrontURL || !stagedForm.MatchString(strings.TrimPrefix(u.Path, "/"+h.sys.Container+"/")):
			t.Errorf("a ticket for %q leads to %s%s", user, u.Host, u.Path)
		}
		return harness.UploadSession{ID: id, URL: text}
	}
	commit := func(user, id, more string) harness.Response {
		t.Helper()
		return h.say(t, call("POST", "/v1/commit?user="+url.QueryEscape(user)+"&upload_id="+url.QueryEscape(id)+more, known, ""))
	}
	for _, user := range []string{"victim", "a b", "猫", "cats-api", "cats-api-upload-1-x", "?comp=list", "#", "%2e%2e", "a&sp=rwd", strings.Repeat("x", 128)} {
		ticketOf(user, len(small))
		ticketOf(user, 65<<20)
	}
	for _, query := range []string{
		"user=victim", "user=victim&size=", "user=victim&size=-1", "user=victim&size=0", "user=victim&size=1073741825", "user=victim&size=9223372036854775808",
		"user=victim&size=1e3", "user=victim&size=1&size=2", "user=victim&user=x&size=1", "user=a%2Fb&size=1", "user=..&size=1", "size=1",
	} {
		if a := h.say(t, call("POST", "/v1/uploads?"+query, known, "")); a.StatusCode/100 != 4 {
			t.Errorf("a ticket for %s: %d %.200s", query, a.StatusCode, a.Body)
		}
	}
	// What nobody asks for is not listened to.
	odd := h.say(t, call("POST", "/v1/uploads?user=victim&size=9&ttl_seconds=86400&permission=rwdl&container="+secretContainer+"&blob=victim%2Fcat&name=victim%2Fcat", known, ""))
	if text, _ := fieldOf(odd, "upload_url").(string); odd.StatusCode != 200 || strings.Contains(text, "victim") || strings.Contains(text, secretContainer) || !strings.Contains(text, "sp=c&") {
		t.Errorf("%d %.200s", odd.StatusCode, odd.Body)
	}

	mine := ticketOf("mallory", len(small))
	for _, id := range []string{
		"", "victim/cat", "../victim/cat", secretContainer + "/" + secretBlob, mine.ID + "/..", mine.ID + "\r\nx-ms-a: b", mine.ID + "%00", mine.ID + "?comp=list", strings.Repeat("1", 5000),
		"1-1-A", "9999999999-1-A", "-1-1-A", strings.Replace(mine.ID, "-", "--", 1), strings.ToLower(mine.ID), "猫",
	} {
		if a := commit("mallory", id, ""); a.StatusCode/100 != 4 {
			t.Errorf("a commit of %.60q: %d %.200s", id, a.StatusCode, a.Body)
		}
	}
	harness.SendToStorage(t, "PUT", mine.URL, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, strings.NewReader(small), int64(len(small))).Want(t, 201)
	for _, other := range []string{"victim", "mallor", "Mallory", "mallory "} {
		if a := commit(other, mine.ID, ""); a.StatusCode != 404 {
			t.Errorf("what was sent as mallory's, committed as that of %q: %d %.200s", other, a.StatusCode, a.Body)
		}
	}
	for _, more := range []string{"&md5=00", "&md5=zz", "&if_match=x", "&if_none_match=%0d%0a", "&upload_id=" + mine.ID, "&user=victim", "&if_match=%22never%22"} {
		if a := commit("mallory", mine.ID, more); a.StatusCode/100 != 4 {
			t.Errorf("a commit with %s: %d %.200s", more, a.StatusCode, a.Body)
		}
	}
	if a := commit("mallory", mine.ID, "&source="+url.QueryEscape("https://example.com/x")+"&container="+secretContainer); a.StatusCode != 200 || fieldOf(a, "content_type") != "image/png" {
		t.Errorf("their own: %d %.200s", a.StatusCode, a.Body)
	}
	stored("mallory")
}
