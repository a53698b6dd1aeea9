"""What a training batch is made from: images, facts, text views, augmentation."""
