package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

// escapes are texts and what a terminal gets.
var escapes = map[string]string{
	"Мурчик 2 👩‍👧 ü \u0301 \"\\":  "Мурчик 2 👩‍👧 ü \u0301 \"\\",
	"\x1b[2J\a\r\n\t\x00":         `\u001b[2J\u0007\u000d\u000a\u0009\u0000`,
	"\x7f\u0080\u009b31m":         `\u007f\u0080\u009b31m`,
	"\u202egnp\u2066\u200f\u061c": `\u202egnp\u2066\u200f\u061c`,
	"\u2028\u2029\ufeff\u200b":    `\u2028\u2029\ufeff\u200b`,
	"\U000e0041\ue000":            `\udb40\udc41\ue000`,
	"a\xffb\xc3\xed\xa0\x80\x9b":  "a\ufffdb\ufffd\ufffd\ufffd\ufffd\ufffd",
}

func FuzzEscapeLeavesNoControlCharacters(f *testing.F) {
	for in := range escapes {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got := escape(in)
		if want, ok := escapes[in]; ok && got != want {
			t.Errorf("%q: %q; want %q", in, got, want)
		}
		if !utf8.ValidString(got) || escape(got) != got || strings.ContainsFunc(got, func(r rune) bool {
			return r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
		}) {
			t.Errorf("%q: %q", in, got)
		}
		var before, after string
		document, err := json.Marshal(in)
		err = errors.Join(err, json.Unmarshal(document, &before), json.Unmarshal([]byte(escape(string(document))), &after))
		if err != nil || after != before {
			t.Errorf("%q: escaping changes the meaning of the JSON string %q", in, document)
		}
	})
}

func TestFileNameHasExtensionOfType(t *testing.T) {
	for _, c := range [][3]string{
		{"mia", "image/jpeg", "mia.jpg"},
		{"mia.JPEG", "image/jpeg", "mia.JPEG"},
		{".png", "image/png", ".png.png"},
		{"mia", "text/html", "mia"},
		{"../x", "image/png", ""},
	} {
		if got, err := fileName(c[0], c[1]); got != c[2] || (err == nil) != (c[2] != "") {
			t.Errorf("%q: %q, %v", c, got, err)
		}
	}
}
