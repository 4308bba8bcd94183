import gradio as gr


class InputAccordion(gr.Checkbox):
    def __init__(self, value, **kwargs):
        super().__init__(value, **kwargs)

    def extra(self):
        return gr.Column(elem_id=f"{self.elem_id}-extra")
