package main

import (
	"bytes"
	"math/rand/v2"
	"mime/multipart"
)

// pngMagic is the start of a PNG of one pixel.
const pngMagic = "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01"

// pictureOf returns a picture of n bytes.
func pictureOf(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	copy(b, pngMagic)
	return b
}

// formOf returns a multipart form with the picture in the field "file".
func formOf(picture []byte) (contentType string, body []byte) {
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	part, _ := w.CreateFormFile("file", "cat.png") // writes to memory never fail
	_, _ = part.Write(picture)
	_ = w.Close()
	return w.FormDataContentType(), form.Bytes()
}
