package client_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"cats.example/cats/client"
)

func Example() {
	ctx := context.Background()
	c, err := client.New("https://cats.example.com", client.Options{Token: os.Getenv("CATS_TOKEN"), MaxRetries: 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	file, err := os.Open("mia.png")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer file.Close()
	_, err = c.Put(ctx, "mia", file, client.PutOptions{Create: true})
	if e, ok := errors.AsType[*client.Error](err); ok && e.Outcome == client.OutcomeUnknown {
		fmt.Println("the picture may have been stored:", e)
	} else if err != nil {
		fmt.Println(err)
	}
}
