package blobstore

import (
	"bytes"
	"crypto/md5"
	"errors"
	"net/http"
	"strings"
	"testing"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// lost does what it is asked, and then cuts the connection in place of an answer.
func lost(s *storage) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		comp := r.URL.Query().Get("comp")
		if r.Method != http.MethodPut || comp == "block" {
			return false
		}
		s.stores(r)
		panic(http.ErrAbortHandler)
	}
}

// What became of a picture whose answer got lost is looked up, and told truly.
func TestAnAnswerThatGotLostIsLookedUp(t *testing.T) {
	for name, content := range map[string]string{"small": pngOf(1000), "large": pngOf(5 << 20)} {
		s, back, _ := newStore(t, nil)
		s.retries = -1
		back.fault = lost(back)
		info, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(content), unknown)
		sum := md5.Sum([]byte(content))
		if err != nil || info.Size != int64(len(content)) || !bytes.Equal(info.MD5, sum[:]) {
			t.Errorf("%s, stored: %v, %+v", name, err, info)
		}
		if back.blobs["/cats/x/cat"] != content {
			t.Errorf("%s: others are stored", name)
		}
	}
}

func TestAPutThatMayHaveHappenedIsToldSo(t *testing.T) {
	s, back, _ := newStore(t, nil)
	s.retries = -1
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			panic(http.ErrAbortHandler)
		}
		refuse(w, 500, "InternalError")
		return true
	}
	_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), unknown)
	if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != apierror.OutcomeUnknown {
		t.Errorf("got %v", err)
	}
	err = s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{})
	if !errors.Is(err, apierror.ErrStorageUnavailable) || apierror.AsError(err).Outcome != apierror.OutcomeUnknown {
		t.Errorf("delete: got %v", err)
	}
}

// The repetition of a create-only put, whose first try did it, is no conflict.
func TestARepeatedCreateIsNotAConflictWithItself(t *testing.T) {
	s, back, _ := newStore(t, nil)
	first := true
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut {
			return false
		}
		if first {
			first = false
			back.stores(r)
			panic(http.ErrAbortHandler)
		}
		refuse(w, 409, "BlobAlreadyExists")
		return true
	}
	opts := signerapi.PutOptions{Size: -1, Preconditions: signerapi.Preconditions{IfNoneMatch: "*"}}
	if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), opts); err != nil {
		t.Errorf("got %v", err)
	}
}

// Where another picture comes between two tries, the second is refused, and what the
// first has done is told all the same.
func TestARefusedRepetitionSaysThatTheFirstMayHaveBeenDone(t *testing.T) {
	s, back, _ := newStore(t, nil)
	tries := 0
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut && r.Method != http.MethodDelete {
			return false
		}
		if tries++; tries%2 == 1 {
			panic(http.ErrAbortHandler)
		}
		back.blobs["/cats/x/cat"] = "another"
		refuse(w, 412, "ConditionNotMet")
		return true
	}
	c := signerapi.Preconditions{IfMatch: `"0x1"`}
	_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), signerapi.PutOptions{Size: 100, Preconditions: c})
	if !errors.Is(err, apierror.ErrPreconditionFailed) || apierror.AsError(err).Outcome != apierror.OutcomeUnknown {
		t.Errorf("put: %v", err)
	}
	err = s.Delete(t.Context(), user(t, "x"), c)
	if !errors.Is(err, apierror.ErrPreconditionFailed) || apierror.AsError(err).Outcome != apierror.OutcomeUnknown {
		t.Errorf("delete: %v", err)
	}
	if tries != 4 {
		t.Errorf("storage was asked %d times", tries)
	}
}

func TestConditionsGoToStorage(t *testing.T) {
	s, back, _ := newStore(t, nil)
	var got []string
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		got = append(got, r.Header.Get("If-Match")+" "+r.Header.Get("If-None-Match"))
		refuse(w, 412, "ConditionNotMet")
		return true
	}
	c := signerapi.Preconditions{IfMatch: `"0x1"`}
	if _, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(100)), signerapi.PutOptions{Size: 100, Preconditions: c}); !errors.Is(err, apierror.ErrPreconditionFailed) {
		t.Errorf("put: %v", err)
	}
	if err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{IfNoneMatch: `"0x2"`}); !errors.Is(err, apierror.ErrPreconditionFailed) {
		t.Errorf("delete: %v", err)
	}
	if len(got) != 2 || got[0] != `"0x1" ` || got[1] != ` "0x2"` {
		t.Errorf("storage was told %q", got)
	}
}

// A large upload whose condition does not hold is refused before it is read.
func TestALargeUploadIsToldOfItsConditionFirst(t *testing.T) {
	s, back, _ := newStore(t, nil)
	back.blobs["/cats/x/cat"] = "cat"
	opts := signerapi.PutOptions{Size: 5 << 20, Preconditions: signerapi.Preconditions{IfNoneMatch: "*"}}
	if _, err := s.Put(t.Context(), user(t, "x"), broken{}, opts); !errors.Is(err, apierror.ErrPreconditionFailed) {
		t.Errorf("got %v", err)
	}
}
