"""What pulls the image towards the prompt: CLIP, and a loss over the whole image and its salient regions."""
